"""From a stored image to the RGB array a model sees."""

import io

import numpy as np
from PIL import Image

from redi.core.registry import configurable

EIGHT_BIT_MODES = frozenset("1 L P RGB RGBA CMYK YCbCr HSV LA La PA RGBX RGBa".split())
SIXTEEN_BIT_MODES = frozenset("I I;16 I;16L I;16B I;16N".split())  # older Pillows open a 16-bit PNG as "I"

# Formats that Pillow decodes by itself in code that is widely used. EPS, say, would run Ghostscript.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # of an image, stored or resized: where Pillow begins to warn; 0.25 GiB of RGB
MAX_BYTES = 2**28  # of a stored image, and of what lists their labels; those of ImageNet have at most 2**24
MAX_SCANS = 100  # of a progressive JPEG, which has about 10; every one costs a pass over all pixels

UPRIGHT = {  # EXIF tag 0x0112 -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@configurable
class Preprocessing:
    """PIL image -> (H, W, 3) uint8 RGB.

    The square is cut by the rule of ADM (Dhariwal and Nichol 2021), as in the published ImageNet results: halve with a
    box filter while the shorter side is at least twice `image_size`, resize with a bicubic filter so that the shorter
    side is `image_size` (smaller images are enlarged), cut the square out of the centre. Transparent images are laid on
    white.

    Args:
        image_size: side of the square, in pixels; None keeps the size.
        exif_orientation: turn photos the way the camera was held. ADM does not: False matches its pixels.
    """

    def __init__(self, image_size: int | None = None, *, exif_orientation: bool = True):
        if image_size is not None and (type(image_size) is not int or image_size < 1):
            raise ValueError(f"Preprocessing.image_size = {image_size!r}: it is a positive integer, or None")
        self.image_size = image_size
        self.exif_orientation = exif_orientation

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = to_rgb(self.upright(image))
        if self.image_size is not None:
            image = centre_square(image, self.image_size)
        return np.array(image)

    def upright(self, image: Image.Image) -> Image.Image:
        """The image turned as its EXIF orientation says, if that is to be honoured."""
        orientation = exif_orientation(image) if self.exif_orientation else 1
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image

    def check(self, image: Image.Image) -> None:
        """Raises ValueError where an opened image must not be decoded, for what that, or resizing, would take."""
        check_pixels(*image.size)
        if self.image_size is not None:
            scale = self.image_size / min(image.size)
            if scale > 1:  # the shorter side becomes image_size, and of a line of pixels the longer one huge
                check_pixels(*(round(side * scale) for side in image.size), ", resized,")

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the result for an upright image of that size."""
        return (width, height) if self.image_size is None else (self.image_size, self.image_size)

    def provenance(self) -> dict:
        """Everything that decides the pixels; `version` goes up when the arithmetic here changes."""
        settings = {"image_size": self.image_size, "exif_orientation": self.exif_orientation}
        return {"name": type(self).__name__, "version": 2, **settings}


def open_image(data: bytes) -> Image.Image:
    """The header of an encoded image; `load` decodes the pixels. Raises ValueError for too many pixels or passes, and
    Pillow's errors on damage.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"an image of more than {MAX_BYTES:,} bytes")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans, which would take very long; at most {MAX_SCANS} are decoded")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_pixels(*image.size)
    return image


def check_pixels(width: int, height: int, how: str = "") -> None:
    """Raises ValueError where an image has more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        many = f"{width:,} x {height:,} pixels{how} are {width * height:,}"
        raise ValueError(f"{many}; at most {MAX_PIXELS:,} are decoded")


def centre_square(image: Image.Image, image_size: int) -> Image.Image:
    """The (image_size, image_size) centre of the image, by ADM's rule."""
    while min(image.size) >= 2 * image_size:
        image = _resize(image, image.width // 2, image.height // 2, Image.Resampling.BOX)
    scale = image_size / min(image.size)
    image = _resize(image, round(image.width * scale), round(image.height * scale), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    # One pass at a time, width first, as in the Pillow of ADM's time; both round to bytes, so the order shows.
    return image.resize((width, image.height), resample).resize((width, height), resample)


def exif_orientation(image: Image.Image) -> int:
    """1 (upright) to 8; 1 also where the EXIF block is damaged, as image viewers do."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Pillow's parser raises whatever the damage leads to (SyntaxError, struct.error, ...)
        return 1


def check_convertible(image: Image.Image) -> None:
    """Raises ValueError where an image has no defined 8-bit RGB equivalent."""
    if image.mode not in EIGHT_BIT_MODES | SIXTEEN_BIT_MODES:
        raise ValueError(f"no known range for pixels of mode {image.mode!r}: store it with 8 or 16 bits")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ValueError(f"32-bit pixels from {low} to {high} do not fit 16 bits: store it with 8 or 16 bits")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit greys scaled (Pillow alone may clip them), transparency laid on white."""
    check_convertible(image)
    if image.mode in SIXTEEN_BIT_MODES:
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65535 / 257 = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
