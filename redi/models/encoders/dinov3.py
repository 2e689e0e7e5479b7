"""DINOv3, the successor of DINOv2 with rotary position embeddings."""

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family
from redi.models.pretrained_network import with_defaults


@register
class DINOv3(Family):
    """Patch features of DINOv3 (Siméoni et al., arXiv 2508.10104).

    E is 384, 384, 768, 1024, 1280 or 4096; the patch size is 16. The weights have their own licence.

    Args:
        size: 'S', 'S+', 'B', 'L', 'H+' or '7B'.
        image_size, resize, layers, combine, final_norm, weights, weights_sha256, precision: see `Timm`.

    Examples:
        >>> dino = DINOv3("S")  # weights are read at first use
        >>> dino.dim, dino.side(256)
        (384, 256)
    """

    models = {
        "S": "vit_small_patch16_dinov3.lvd1689m",
        "S+": "vit_small_plus_patch16_dinov3.lvd1689m",
        "B": "vit_base_patch16_dinov3.lvd1689m",
        "L": "vit_large_patch16_dinov3.lvd1689m",
        "H+": "vit_huge_plus_patch16_dinov3.lvd1689m",
        "7B": "vit_7b_patch16_dinov3.lvd1689m",
    }
    __init__ = with_defaults(Family.__init__, "B")
