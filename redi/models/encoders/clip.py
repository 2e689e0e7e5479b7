"""CLIP: features that were learned from captions."""

from collections.abc import Sequence
from typing import Literal

from redi.models.encoders import register
from redi.models.encoders.pretrained import PretrainedEncoder, of_size

# The names with quickgelu: the others have the exact GELU, which OpenAI's weights were not trained with.
SIZES = {"B/32": "base_patch32", "B/16": "base_patch16", "L/14": "large_patch14"}


@register
class CLIP(PretrainedEncoder):
    """Patch features of the vision transformer of OpenAI's CLIP (Radford et al., arXiv 2103.00020).

    They pass the final norm, but not the projection to the space of captions. E is 768, or 1024 for L/14.

    Args:
        size: 'B/32', 'B/16' or 'L/14'; the number is the patch size.
        image_size, resize, layers, weights, weights_sha256, precision: see `PretrainedEncoder`.
    """

    def __init__(
        self,
        *,
        size: Literal["B/32", "B/16", "L/14"] = "B/16",
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        model = f"vit_{of_size(SIZES, size, 'CLIP.size')}_clip_quickgelu_224.openai"
        super().__init__(
            model=model, image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip
