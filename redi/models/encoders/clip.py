"""CLIP: features learned from captions."""

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family
from redi.models.pretrained_network import with_defaults


@register
class CLIP(Family):
    """Patch features of the vision transformer of OpenAI's CLIP (Radford et al., arXiv 2103.00020).

    The features include the final norm, but not the projection to the caption space. E is 768, or 1024 for L/14.

    Args:
        size: 'B/32', 'B/16' or 'L/14'; the number is the patch size.
        image_size, resize, layers, combine, final_norm, weights, weights_sha256, precision: see `Timm`.

    Examples:
        >>> clip = CLIP("B/16")  # weights are read at first use
        >>> clip.dim, clip.stride
        (768, 16)
    """

    # timm's variants with quickgelu, with which OpenAI's weights were trained; the others use the exact GELU.
    models = {
        "B/32": "vit_base_patch32_clip_quickgelu_224.openai",
        "B/16": "vit_base_patch16_clip_quickgelu_224.openai",
        "L/14": "vit_large_patch14_clip_quickgelu_224.openai",
    }
    __init__ = with_defaults(Family.__init__, "B/16")
