"""DINOv3: as DINOv2, with rotary positions."""

from collections.abc import Sequence
from typing import Literal

from redi.models.encoders import register
from redi.models.encoders.pretrained import PretrainedEncoder, of_size

SIZES = {"S": "small", "S+": "small_plus", "B": "base", "L": "large", "H+": "huge_plus", "7B": "7b"}


@register
class DINOv3(PretrainedEncoder):
    """Patch features of DINOv3 (Siméoni et al., arXiv 2508.10104), trained on LVD-1689M; its weights have a licence
    of their own.

    E is 384, 384, 768, 1024, 1280 or 4096; the patch size is 16.

    Args:
        size: 'S', 'S+', 'B', 'L', 'H+' or '7B'.
        image_size, resize, layers, weights, weights_sha256, precision: see `PretrainedEncoder`.
    """

    def __init__(
        self,
        *,
        size: Literal["S", "S+", "B", "L", "H+", "7B"] = "B",
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        model = f"vit_{of_size(SIZES, size, 'DINOv3.size')}_patch16_dinov3.lvd1689m"
        super().__init__(
            model=model, image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip
