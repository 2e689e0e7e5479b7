"""SigLIP 2: captions, self-distillation and localisation together."""

from collections.abc import Sequence
from typing import Literal

from redi.models.encoders import register
from redi.models.encoders.pretrained import PretrainedEncoder, of_size

# After the @: the image size of the weights' last training, where there are weights for several.
SIZES = {
    "B/32": "base_patch32_siglip_256",
    "B/16": "base_patch16_siglip_256",
    "B/16@224": "base_patch16_siglip_224",
    "B/16@384": "base_patch16_siglip_384",
    "B/16@512": "base_patch16_siglip_512",
    "L/16": "large_patch16_siglip_256",
    "L/16@384": "large_patch16_siglip_384",
    "L/16@512": "large_patch16_siglip_512",
    "So400m/14": "so400m_patch14_siglip_224",
    "So400m/14@378": "so400m_patch14_siglip_378",
    "So400m/16": "so400m_patch16_siglip_256",
    "So400m/16@384": "so400m_patch16_siglip_384",
    "So400m/16@512": "so400m_patch16_siglip_512",
    "g/16": "giantopt_patch16_siglip_256",
    "g/16@384": "giantopt_patch16_siglip_384",
}


@register
class SigLIP2(PretrainedEncoder):
    """Patch features of the vision transformer of SigLIP 2 (Tschannen et al., arXiv 2502.14786).

    They pass the final norm, but not the attention pooling. E is 768 (B), 1024 (L), 1152 (So400m) or 1536 (g).

    Args:
        size: 'B/32', 'B/16', 'L/16', 'So400m/14', 'So400m/16' or 'g/16'; the number is the patch size. The weights
            are those for 256 pixels (224 with patches of 14); for larger ones write, for example, 'B/16@512'.
        image_size, resize, layers, weights, weights_sha256, precision: see `PretrainedEncoder`.
    """

    def __init__(
        self,
        *,
        size: str = "B/16",
        image_size: int | None = None,
        resize: Literal["antialiased", "released"] = "antialiased",
        layers: int | Sequence[int] | None = None,
        weights: str | None = None,
        weights_sha256: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        model = f"vit_{of_size(SIZES, size, 'SigLIP2.size')}.v2_webli"
        super().__init__(
            model=model, image_size=image_size, resize=resize, layers=layers,
            weights=weights, weights_sha256=weights_sha256, precision=precision,
        )  # fmt: skip
