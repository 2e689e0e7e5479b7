"""CLIP: features that were learned from captions."""

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family
from redi.models.pretrained_network import with_defaults


@register
class CLIP(Family):
    """Patch features of the vision transformer of OpenAI's CLIP (Radford et al., arXiv 2103.00020).

    They pass the final norm, but not the projection to the space of captions. E is 768, or 1024 for L/14.

    Args:
        size: 'B/32', 'B/16' or 'L/14'; the number is the patch size.
        image_size, resize, layers, weights, weights_sha256, precision: see `Timm`.
    """

    # The names with quickgelu: the others have the exact GELU, which OpenAI's weights were not trained with.
    models = {
        "B/32": "vit_base_patch32_clip_quickgelu_224.openai",
        "B/16": "vit_base_patch16_clip_quickgelu_224.openai",
        "L/14": "vit_large_patch14_clip_quickgelu_224.openai",
    }
    __init__ = with_defaults(Family.__init__, "B/16")
