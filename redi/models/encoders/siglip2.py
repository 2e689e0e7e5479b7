"""SigLIP 2: features learned from captions, self-distillation and localisation."""

from redi.models.encoders import register
from redi.models.encoders.timm_model import Family
from redi.models.pretrained_network import with_defaults


@register
class SigLIP2(Family):
    """Patch features of the vision transformer of SigLIP 2 (Tschannen et al., arXiv 2502.14786).

    The features include the final norm, but not the attention pooling. E is 768 (B), 1024 (L), 1152 (So400m) or
    1536 (g).

    Args:
        size: 'B/32', 'B/16', 'L/16', 'So400m/14', 'So400m/16' or 'g/16'; the number is the patch size. The weights
            were trained on images of 256 pixels (224 for patch size 14); for another size write, for example,
            'B/16@512'.
        image_size, resize, layers, combine, final_norm, weights, weights_sha256, precision: see `Timm`.

    Examples:
        >>> siglip = SigLIP2("So400m/14")  # weights are read at first use
        >>> siglip.dim, siglip.stride
        (1152, 14)
    """

    # After the @: the image size of the last training stage, where weights for several sizes exist.
    models = {
        "B/32": "vit_base_patch32_siglip_256.v2_webli",
        "B/16": "vit_base_patch16_siglip_256.v2_webli",
        "B/16@224": "vit_base_patch16_siglip_224.v2_webli",
        "B/16@384": "vit_base_patch16_siglip_384.v2_webli",
        "B/16@512": "vit_base_patch16_siglip_512.v2_webli",
        "L/16": "vit_large_patch16_siglip_256.v2_webli",
        "L/16@384": "vit_large_patch16_siglip_384.v2_webli",
        "L/16@512": "vit_large_patch16_siglip_512.v2_webli",
        "So400m/14": "vit_so400m_patch14_siglip_224.v2_webli",
        "So400m/14@378": "vit_so400m_patch14_siglip_378.v2_webli",
        "So400m/16": "vit_so400m_patch16_siglip_256.v2_webli",
        "So400m/16@384": "vit_so400m_patch16_siglip_384.v2_webli",
        "So400m/16@512": "vit_so400m_patch16_siglip_512.v2_webli",
        "g/16": "vit_giantopt_patch16_siglip_256.v2_webli",
        "g/16@384": "vit_giantopt_patch16_siglip_384.v2_webli",
    }
    __init__ = with_defaults(Family.__init__, "B/16")
