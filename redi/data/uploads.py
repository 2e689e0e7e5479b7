"""Images that a user hands over while a program runs."""

import torch
from einops import rearrange
from PIL import UnidentifiedImageError
from torch import Tensor

from redi.data.preprocessing import FORMATS, Preprocessing, check_convertible, open_image

MAX_UPLOAD_BYTES = 2**24
MAX_UPLOAD_PIXELS = 2**25  # a photograph of 32 megapixels


def uploaded_image(data: bytes, image_size: int) -> Tensor:
    """Decode a file to an image (1, 3, S, S) uint8, cropped to a square of `image_size` pixels.

    Raises ValueError: too large, not an image, or a damaged one.
    """
    if len(data) > MAX_UPLOAD_BYTES:
        raise ValueError(f"the file has {len(data):,} bytes: must have at most {MAX_UPLOAD_BYTES:,}")
    crop = Preprocessing(image_size)
    try:
        with open_image(data) as image:
            if image.width * image.height > MAX_UPLOAD_PIXELS:
                what = f"the image has {image.width:,} x {image.height:,} pixels"
                raise ValueError(f"{what}: must have at most {MAX_UPLOAD_PIXELS:,}")
            crop.check(image)
            image.load()
            check_convertible(image)
            return rearrange(torch.from_numpy(crop(image)), "h w c -> 1 c h w").contiguous()
    except UnidentifiedImageError:  # its own message is the address of a Python object
        raise ValueError(f"the file is not an image: must be one of {', '.join(FORMATS)}") from None
    except ValueError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise ValueError(f"the image is damaged ({type(error).__name__}): choose another file") from error
