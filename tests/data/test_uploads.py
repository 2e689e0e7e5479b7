"""Uploaded images: cropped to the model's size, or refused."""

import io

import pytest
import torch
from PIL import Image

from redi.data import uploads
from redi.data.preprocessing import Preprocessing
from redi.data.uploads import uploaded_image


def png(width: int, height: int) -> bytes:
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_an_upload_is_cropped_like_an_image_of_a_data_set():
    image = uploaded_image(png(30, 20), 8)
    assert image.shape == (1, 3, 8, 8) and image.is_contiguous()
    expected = Preprocessing(8)(Image.open(io.BytesIO(png(30, 20))))
    assert torch.equal(image[0].permute(1, 2, 0), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image: must be one of AVIF, BMP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png(300, 300)[:2000], "the image is damaged"),
        (png(8, 1) * 2**18, "must have at most 16,777,216"),
    ],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        uploaded_image(data, 8)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD_PIXELS", 599)
    with pytest.raises(ValueError, match="30 x 20 pixels: must have at most 599"):
        uploaded_image(png(30, 20), 8)
