import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from redi.data.preprocessing import Preprocessing, check_convertible, to_rgb


@pytest.fixture
def photos(photographs) -> list[Path]:
    return sorted(photographs.rglob("*.jpg"))


def load(photo: Path) -> Image.Image:
    with Image.open(photo) as image:
        image.load()
        return image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def resample(x: np.ndarray, n: int, kernel) -> np.ndarray:
    """Naive float reference: resize axis 0 to length n, with a wider kernel when shrinking; rounded to bytes."""
    scale = len(x) / n
    offset = (np.arange(len(x)) + 0.5 - (np.arange(n)[:, None] + 0.5) * scale) / max(scale, 1)  # (n, len(x))
    weights = kernel(offset)
    return np.floor(np.tensordot(weights / weights.sum(1, keepdims=True), x, axes=1).clip(0, 255) + 0.5)


def box(t):
    return ((t > -0.5) & (t <= 0.5)).astype(float)


def cubic(t, a=-0.5):
    t = abs(t)
    outer = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t < 1, (a + 2) * t**3 - (a + 3) * t**2 + 1, np.where(t < 2, outer, 0))


def adm_reference(x: np.ndarray, size: int) -> np.ndarray:
    def to(x, h, w, kernel):
        return resample(resample(x.swapaxes(0, 1), w, kernel).swapaxes(0, 1), h, kernel)

    while min(x.shape[:2]) >= 2 * size:
        x = to(x, x.shape[0] // 2, x.shape[1] // 2, box)
    scale = size / min(x.shape[:2])
    x = to(x, round(x.shape[0] * scale), round(x.shape[1] * scale), cubic)
    top, left = (x.shape[0] - size) // 2, (x.shape[1] - size) // 2
    return x[top : top + size, left : left + size]


@pytest.mark.parametrize("size", [(40, 40), (33, 47), (129, 100), (300, 64), (16, 20), (256, 31)])
@pytest.mark.parametrize("image_size", [16, 32])
def test_agrees_with_a_naive_float_version_of_adms_rule(size, image_size):
    width, height = size
    pixels = noise(height, width, 3)
    got = Preprocessing(image_size=image_size)(Image.fromarray(pixels)).astype(float)
    difference = abs(got - adm_reference(pixels.astype(float), image_size))
    assert difference.max() <= 1 and difference.mean() < 0.01  # Pillow's fixed-point weights: a rare tie differs


def test_every_photo_becomes_a_square_of_rgb_bytes(photos):
    for photo in photos:
        array = Preprocessing(image_size=256)(load(photo))
        assert array.shape == (256, 256, 3) and array.dtype == np.uint8, photo.name


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (511, 3), (513, 512)])
def test_extreme_shapes_become_squares(size):
    assert Preprocessing(image_size=8)(Image.new("RGB", size)).shape == (8, 8, 3)


def test_an_image_of_the_target_size_is_untouched():
    pixels = noise(32, 32, 3)
    assert np.array_equal(Preprocessing(image_size=32)(Image.fromarray(pixels)), pixels)


def test_without_image_size_the_size_stays():
    pixels = noise(5, 9, 3)
    assert np.array_equal(Preprocessing()(Image.fromarray(pixels)), pixels)
    assert Preprocessing().output_size(9, 5) == (9, 5)
    assert Preprocessing(image_size=4).output_size(9, 5) == (4, 4)


def test_the_rotated_photo_is_turned_by_default_and_left_as_adm_leaves_it_on_request(photos):
    [image] = [image for image in map(load, photos) if image.getexif().get(0x0112) == 6]
    stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(Preprocessing(exif_orientation=False)(image), stored)
    assert np.array_equal(Preprocessing()(image), np.rot90(stored, -1))  # 6: the camera's top is at the right


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_agrees_with_pillows_own(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(noise(6, 10, 3)).save(file, kind, exif=exif)
    image = Image.open(file)
    image.load()
    assert np.array_equal(Preprocessing()(image), np.asarray(ImageOps.exif_transpose(Image.open(file))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_no_reason_to_stop():
    file = io.BytesIO()
    Image.new("RGB", (4, 6)).save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    assert Preprocessing()(Image.open(file)).shape == (6, 4, 3)


def test_sixteen_bit_greys_are_scaled_not_clipped():
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    for image in (Image.open(file), Image.fromarray(grey), Image.fromarray(grey.astype(np.int32))):
        assert Preprocessing()(image)[0, :, 0].tolist() == [0, 1, 128, 255], image.mode


def test_palette_images_get_their_colours():
    pixels = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    palette = Image.fromarray(pixels).quantize(2)
    assert palette.mode == "P" and np.array_equal(Preprocessing()(palette), pixels)


def test_transparency_is_laid_on_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    assert Preprocessing()(Image.fromarray(pixels)).tolist() == [[[10, 20, 30], [255] * 3, [127] * 3]]
    palette = Image.new("P", (1, 1), 0)
    palette.info["transparency"] = 0
    assert Preprocessing()(palette).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("mode", "1 L P RGB RGBA CMYK YCbCr HSV LA La PA RGBX RGBa I I;16 I;16B".split())
def test_every_supported_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_an_opaque_alpha_channel_changes_nothing():
    pixels = noise(9, 9, 3)
    assert np.array_equal(Preprocessing()(Image.fromarray(pixels).convert("RGBA")), pixels)


def test_pixels_without_a_known_range_are_refused():
    with pytest.raises(ValueError, match="the range of pixels of mode 'F' is unknown: store the image with 8"):
        Preprocessing()(Image.new("F", (2, 2)))
    with pytest.raises(ValueError, match="32-bit pixels from 0 to 70000 do not fit 16 bits"):
        check_convertible(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


@pytest.mark.parametrize("image_size", [0, -1, 25.5, True, "256"])
def test_an_impossible_image_size_is_refused(image_size):
    with pytest.raises(ValueError, match="Preprocessing.image_size = .* must be a positive integer or None"):
        Preprocessing(image_size=image_size)


def test_provenance_tells_settings_apart():
    settings = [{}, {"image_size": 8}, {"exif_orientation": False}]
    assert len({str(Preprocessing(**setting).provenance()) for setting in settings}) == 3
