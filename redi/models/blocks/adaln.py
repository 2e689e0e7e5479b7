"""The block of the diffusion transformer (DiT, Peebles & Xie, arXiv 2212.09748)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from redi.models.attention import attend_sdpa
from redi.models.attention_backends import Attention


class Block(nn.Module):
    """A transformer block: attention and MLP, each modulated and gated by the condition (adaLN-zero).

    Examples:
        >>> Block(width=32, num_heads=2, mlp_ratio=4.0)(torch.randn(2, 16, 32), torch.zeros(2, 32)).shape
        torch.Size([2, 16, 32])
    """

    attend: Attention

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads, self.attend = num_heads, attend_sdpa
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (N, T, D) to tokens (N, T, D), for the condition (N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = in_float32(self.modulation, condition).chunk(6, dim=-1)  # (N, D)
        qkv = self.qkv(modulate(self.norm1(tokens), shift1, scale1))  # (N, T, 3 D)
        # Three separate views: a single view with a leading 3 would copy the gradients once more.
        q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=self.num_heads) for part in qkv.chunk(3, dim=-1))
        attended = rearrange(self.attend(q, k, v), "n t h d -> n t (h d)")
        tokens = tokens + gate1[:, None] * self.projection(attended)
        return tokens + gate2[:, None] * self.mlp(modulate(self.norm2(tokens), shift2, scale2))


def in_float32(layers: nn.Module, x: Tensor) -> Tensor:
    """Apply layers in the precision of their weights, normally float32, even under autocast.

    In bfloat16, the condition (N, D) would round 1 + scale in every block, and the residual stream would be bfloat16.
    """
    if x.is_meta:  # autocast does not support this device
        return layers(x)
    with torch.autocast(x.device.type, enabled=False):
        return layers(x)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (N, T, D) by (N, D): tokens * (1 + scale) + shift."""
    return tokens * (1 + scale[:, None]) + shift[:, None]
