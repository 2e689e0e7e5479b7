"""ADM's rule to the byte, on real photos: against an implementation in numpy that uses nothing of Pillow but its
decoders. What Pillow documents of its resampling is integer arithmetic, so there is no tolerance."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from redi.data.preprocessing import Preprocessing

PRECISION_BITS = 32 - 8 - 2  # of Pillow's fixed-point weights, for pixels of 8 bits


def box(t: np.ndarray) -> np.ndarray:
    return ((t > -0.5) & (t <= 0.5)).astype(float)


def cubic(t: np.ndarray, a: float = -0.5) -> np.ndarray:
    t = np.abs(t)
    outer = np.where(t < 2, (((t - 5) * t + 8) * t - 4) * a, 0)
    return np.where(t < 1, ((a + 2) * t - (a + 3)) * t * t + 1, outer)


SUPPORT = {box: 0.5, cubic: 2.0}


def resample(x: np.ndarray, n: int, kernel) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, n, 3): one pass of Pillow's resampling along the width."""
    size = x.shape[1]
    if n == size:
        return x
    scale = size / n
    stretch = max(scale, 1.0)
    reach = SUPPORT[kernel] * stretch
    centre = ((np.arange(n) + 0.5) * scale)[:, None]
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), size)
    source = first + np.arange(int(np.ceil(reach)) * 2 + 1)  # (n, taps)
    weights = kernel((source - centre + 0.5) / stretch) * (source < last)
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # summed one after the other, as a loop in C does
    weights = np.trunc(weights * 2**PRECISION_BITS + np.copysign(0.5, weights)).astype(np.int64)
    source = np.minimum(source, size - 1)
    total = sum(x[:, source[:, k]] * weights[:, k, None] for k in range(source.shape[1]))
    return ((total + 2 ** (PRECISION_BITS - 1)) >> PRECISION_BITS).clip(0, 255).astype(np.uint8)


def resize(x: np.ndarray, height: int, width: int, kernel) -> np.ndarray:
    x = resample(x, width, kernel)
    return resample(x.swapaxes(0, 1), height, kernel).swapaxes(0, 1)


def adm(x: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3), by the published description of Dhariwal and Nichol's preprocessing."""
    while min(x.shape[:2]) >= 2 * size:
        x = resize(x, x.shape[0] // 2, x.shape[1] // 2, box)
    scale = size / min(x.shape[:2])
    x = resize(x, round(x.shape[0] * scale), round(x.shape[1] * scale), cubic)
    top, left = (x.shape[0] - size) // 2, (x.shape[1] - size) // 2
    return x[top : top + size, left : left + size]


def rgb(image: Image.Image) -> np.ndarray:
    """The stored pixels as (H, W, 3), converted in numpy: grey repeated, palettes looked up, CMYK mixed."""
    x = np.asarray(image)
    if image.mode == "L":
        return np.repeat(x[..., None], 3, axis=2)
    if image.mode == "P":
        return np.array(image.getpalette(), np.uint8).reshape(-1, 3)[x]
    if image.mode == "CMYK":
        x = x.astype(int)
        light = 255 - x[..., 3:]
        product = x[..., :3] * light + 128
        return (light - ((product >> 8) + product >> 8)).astype(np.uint8)
    assert image.mode == "RGB"
    return x


def reread(image: Image.Image, kind: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


@pytest.fixture
def photos(photographs) -> dict[str, Image.Image]:
    paths = sorted(photographs.rglob("*.jpg"))
    return {f"{path.parent.name} {path.stem}": Image.open(io.BytesIO(path.read_bytes())) for path in paths}


@pytest.fixture
def imagenet(outside_data) -> dict[str, Image.Image]:
    """Every 25th of 1,000 ImageNet photos."""
    with tarfile.open(outside_data("imagenet-sample.tar")) as tar:
        files = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        return {file.name: Image.open(io.BytesIO(tar.extractfile(file).read())) for file in files[::25]}


def differing(images: dict[str, Image.Image], image_size: int) -> list[str]:
    preprocess = Preprocessing(image_size=image_size, exif_orientation=False)
    return [
        name for name, image in images.items() if not np.array_equal(preprocess(image), adm(rgb(image), image_size))
    ]


def test_imagenet_photos_at_256_are_adms_to_the_byte(imagenet):
    assert len(imagenet) >= 30
    assert differing(imagenet, 256) == []


@pytest.mark.parametrize("image_size", [256, 512])
def test_original_photos_are_adms_to_the_byte_at_both_sizes(photos, image_size):
    assert {image.mode for image in photos.values()} == {"RGB", "L"}
    assert differing(photos, image_size) == []


def test_tall_photos_are_resized_along_the_width_first_whatever_pillow_prefers(photos):
    # At 64 pixels some of these are so tall that recent Pillows go along the height first when asked in one call.
    assert differing(photos, 64) == []


@pytest.mark.parametrize("image_size", [256, 512])
def test_photos_smaller_than_the_square_are_enlarged_to_it(photos, image_size):
    small = {name: image for name, image in photos.items() if min(image.size) < image_size}
    assert min(min(image.size) for image in small.values()) == 56
    assert differing(small, image_size) == []


@pytest.mark.parametrize("kind", ["palette", "cmyk", "grey"])
@pytest.mark.parametrize("image_size", [256, 512])
def test_files_of_other_modes_are_adms_to_the_byte(photos, kind, image_size):
    photo = photos["china whole"]
    image = {
        "palette": lambda: reread(photo.quantize(100), "PNG"),
        "cmyk": lambda: reread(photo.convert("CMYK"), "JPEG"),
        "grey": lambda: reread(photo.convert("L"), "JPEG"),
    }[kind]()
    assert image.mode == {"palette": "P", "cmyk": "CMYK", "grey": "L"}[kind]
    assert differing({kind: image}, image_size) == []


@pytest.mark.parametrize("image_size", [256, 512])
def test_the_photo_held_sideways_is_turned_before_the_rule_or_left_alone(photos, image_size):
    [image] = [photo for photo in photos.values() if photo.getexif().get(0x0112) == 6]
    turned = np.rot90(rgb(image), -1)
    assert np.array_equal(Preprocessing(image_size=image_size)(image), adm(turned, image_size))
    upright = Preprocessing(image_size=image_size, exif_orientation=False)(image)
    assert np.array_equal(upright, adm(rgb(image), image_size))


@pytest.mark.parametrize("size", [(40, 41), (129, 100), (300, 64), (17, 333), (31, 31), (511, 257), (16, 20)])
@pytest.mark.parametrize("image_size", [16, 31, 32])
def test_noise_of_odd_sizes_is_adms_to_the_byte(size, image_size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert differing({"noise": Image.fromarray(pixels)}, image_size) == []
