"""Convert stored images to the RGB arrays that models receive."""

import io
from typing import cast

import numpy as np
from PIL import Image

from redi.core.registry import configurable

EIGHT_BIT_MODES = frozenset("1 L P RGB RGBA CMYK YCbCr HSV LA La PA RGBX RGBa".split())
SIXTEEN_BIT_MODES = frozenset("I I;16 I;16L I;16B I;16N".split())  # older Pillows open a 16-bit PNG as "I"

# Formats that Pillow decodes with its own, widely used code. EPS, for example, would run Ghostscript.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # of a stored or resized image: Pillow's limit for a warning; 0.25 GiB of RGB
MAX_BYTES = 2**28  # of a stored image or a file of labels; those of ImageNet have at most 2**24
MAX_SCANS = 100  # of a progressive JPEG; usual are about 10, and each costs a pass over all pixels

UPRIGHT = {  # EXIF orientation (tag 0x0112) -> the operation that undoes it
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
    """Convert a PIL image to (H, W, 3) uint8 RGB, and crop it to a square of a given size.

    The crop follows ADM (Dhariwal and Nichol 2021), as in the published ImageNet results: halve the image with a box
    filter while its shorter side is at least twice `image_size`; resize the shorter side to `image_size` with a bicubic
    filter (smaller images are enlarged); take the central square. Transparent images get a white background.

    Args:
        image_size: side of the square, in pixels; None keeps the stored size.
        exif_orientation: rotate photos by their EXIF orientation. ADM does not; False reproduces its pixels.
    """

    def __init__(self, image_size: int | None = None, *, exif_orientation: bool = True):
        if image_size is not None and (type(image_size) is not int or image_size < 1):
            raise ValueError(f"Preprocessing.image_size = {image_size!r} must be a positive integer or None")
        self.image_size = image_size
        self.exif_orientation = exif_orientation

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = to_rgb(self.upright(image))
        if self.image_size is not None:
            image = centre_square(image, self.image_size)
        return np.array(image)

    def upright(self, image: Image.Image) -> Image.Image:
        """Rotate or flip the image by its EXIF orientation, if `exif_orientation` is set."""
        orientation = exif_orientation(image) if self.exif_orientation else 1
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image

    def check(self, image: Image.Image) -> None:
        """Raise ValueError if decoding or resizing an opened image would exceed the limit of pixels."""
        check_pixels(*image.size)
        if self.image_size is not None:
            width, height = image.size
            scale = self.image_size / min(width, height)
            if scale > 1:  # enlarging a very narrow image makes its longer side huge
                check_pixels(round(width * scale), round(height * scale), " after resizing")

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the result for an upright image of this size."""
        return (width, height) if self.image_size is None else (self.image_size, self.image_size)

    def provenance(self) -> dict:
        """Return all settings that affect the pixels; `version` increases when the arithmetic here changes."""
        settings = {"image_size": self.image_size, "exif_orientation": self.exif_orientation}
        return {"name": type(self).__name__, "version": 2, **settings}


def open_image(data: bytes) -> Image.Image:
    """Read the header of an encoded image. Raises ValueError above a limit, and Pillow's errors for damaged images."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES:,} bytes")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"the JPEG has {scans:,} scans, which are slow to decode; at most {MAX_SCANS} are allowed")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_pixels(*image.size)
    return image


def check_pixels(width: int, height: int, when: str = "") -> None:
    """Raise ValueError if an image has more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        count = f"{width:,} x {height:,} = {width * height:,} pixels{when}"
        raise ValueError(f"the image has {count}; at most {MAX_PIXELS:,} are allowed")


def centre_square(image: Image.Image, image_size: int) -> Image.Image:
    """Resize and crop an image to (image_size, image_size) by ADM's rule."""
    while min(image.size) >= 2 * image_size:
        image = _resize(image, image.width // 2, image.height // 2, Image.Resampling.BOX)
    scale = image_size / min(image.size)
    image = _resize(image, round(image.width * scale), round(image.height * scale), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    # Width first, then height, as in the Pillow version of ADM's time. Both passes round to bytes: the order matters.
    return image.resize((width, image.height), resample).resize((width, height), resample)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if the EXIF block is damaged, as in image viewers."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # Pillow's parser raises many kinds of exceptions on damage (SyntaxError, struct.error, ...)
        return 1


def check_convertible(image: Image.Image) -> None:
    """Raise ValueError if an image has no well-defined 8-bit RGB equivalent."""
    if image.mode not in EIGHT_BIT_MODES | SIXTEEN_BIT_MODES:
        raise ValueError(f"the range of pixels of mode {image.mode!r} is unknown: store the image with 8 or 16 bits")
    if image.mode == "I":
        low, high = cast(tuple[int, int], image.getextrema())  # one pair, because the mode has one channel
        if low < 0 or high > 65535:
            what = f"32-bit pixels from {low} to {high} do not fit 16 bits"
            raise ValueError(f"{what}: store the image with 8 or 16 bits")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB: 16-bit grey is divided by 257, and transparency becomes white."""
    check_convertible(image)
    if image.mode in SIXTEEN_BIT_MODES:
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65535 / 257 = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
