"""The block of DiT (Peebles & Xie, arXiv 2212.09748)."""

from einops import rearrange
from torch import Tensor, nn

from redi.models.blocks import Block, modulate, modulations, register


@register
class AdaLN(Block):
    """Attention and MLP, each modulated and gated by the condition (adaLN-zero). The paper's models use it.

    LayerNorm without weights, and an MLP with tanh-GELU. Positions come from the fusion's table alone.

    Args:
        width, num_heads, mlp_ratio: see `Block`.

    Examples:
        >>> import torch
        >>> tokens = torch.randn(2, 16, 32)
        >>> AdaLN(width=32, num_heads=2)(tokens, torch.zeros(2, 32)).shape
        torch.Size([2, 16, 32])
    """

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__(width=width, num_heads=num_heads)
        self.norm1 = self.make_norm()
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = self.make_norm()
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor, rotation: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations(self.modulation, condition, 6)
        qkv = self.qkv(modulate(self.norm1(tokens), shift1, scale1))  # (N, T, 3 D)
        # Three separate views: a single view with a leading 3 would copy the gradients once more.
        q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=self.num_heads) for part in qkv.chunk(3, dim=-1))
        attended = rearrange(self.attend(q, k, v), "n t h d -> n t (h d)")
        tokens = tokens + gate1 * self.projection(attended)
        return tokens + gate2 * self.mlp(modulate(self.norm2(tokens), shift2, scale2))

    def make_norm(self) -> nn.Module:
        return nn.LayerNorm(self.width, elementwise_affine=False, eps=1e-6)
