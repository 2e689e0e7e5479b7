"""The block of DiT (Peebles & Xie, arXiv 2212.09748)."""

from redi.models.blocks import register
from redi.models.blocks.modern import Modern


@register
class AdaLN(Modern):
    """Attention and MLP, each modulated and gated by the condition (adaLN-zero). The paper's models use it.

    `Modern` without its novelties: LayerNorm without weights, and an MLP with tanh-GELU. Positions come from the
    fusion's table alone.

    Args:
        width, num_heads, mlp_ratio: see `Block`.

    Examples:
        >>> import torch
        >>> tokens = torch.randn(2, 16, 32)
        >>> AdaLN(width=32, num_heads=2)(tokens, torch.zeros(2, 32)).shape
        torch.Size([2, 16, 32])
    """

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__(
            width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, norm="layer", mlp="gelu", rotary=False, qk_norm=False
        )
