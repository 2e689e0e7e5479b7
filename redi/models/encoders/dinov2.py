"""DINOv2: the representation of the paper."""

from collections.abc import Sequence
from typing import Literal

from redi.models.encoders import register
from redi.models.encoders.pretrained import PretrainedEncoder, of_size

SIZES = {"S": "small", "B": "base", "L": "large", "g": "giant"}


@register
class DINOv2(PretrainedEncoder):
    """Patch features of DINOv2 (Oquab et al., arXiv 2304.07193), `x_norm_patchtokens` of the authors' code.

    The paper takes size B with registers (Darcet et al., arXiv 2309.16588) and leaves the resize rule open: published
    weights of ReDi need `DINOv2.resize = 'released'`. E is 384, 768, 1024 or 1536; the patch size is 14.

    Args:
        size: 'S', 'B', 'L' or 'g'.
        registers: the models with four register tokens. Those without had their position embedding resampled by
            another rule in the authors' code: away from 518 pixels they differ from it by about 5 % rms.
        image_size, resize, layers, weights, weights_sha256, precision: see `PretrainedEncoder`. `weights` may be
            the authors' own file, such as dinov2_vitb14_reg4_pretrain.pth.
    """

    def __init__(
        self,
        *,
        size: Literal["S", "B", "L", "g"] = "B",
        registers: bool = True,
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        model = f"vit_{of_size(SIZES, size, 'DINOv2.size')}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
        super().__init__(
            model=model, image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip
