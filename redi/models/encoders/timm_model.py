"""Any vision model of timm, by its name."""

from collections.abc import Sequence
from typing import Literal

from redi.models.encoders import register
from redi.models.encoders.pretrained import PretrainedEncoder


@register
class Timm(PretrainedEncoder):
    """Features of any timm model that has feature maps: vision transformers, ConvNeXt, ResNet and others.

    Args:
        model: timm's name with the tag of the weights, such as 'vit_base_patch16_224.mae' (without a tag: timm's
            first); `timm.list_models(pretrained=True)` lists them.
        image_size, resize, layers, weights, weights_sha256, precision: see `PretrainedEncoder`. The layers of
            a network of stages are its stages; its patch size is the stride of the chosen one. A network of one
            fixed size gets that.
    """

    def __init__(
        self,
        *,
        model: str = "vit_base_patch16_224.mae",
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__(
            model=model, image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip
