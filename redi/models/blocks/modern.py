"""The block of LightningDiT (Yao et al., arXiv 2501.01423), with its parts as options."""

from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from redi.models.blocks import Block, modulate, modulations, register
from redi.models.rotary import rotated
from redi.runtime.ranges import check_choice

NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}


@register
class Modern(Block):
    """RMSNorm, SwiGLU, rotary positions and normalised queries and keys, modulated and gated as in DiT.

    Args:
        width, num_heads, mlp_ratio: see `Block`. SwiGLU has 2/3 of the hidden width, and so as many weights.
        norm: 'rms' with a learned weight, or 'layer' without weights, as in DiT; for tokens, queries and keys.
        mlp: 'swiglu', or 'gelu' as in DiT.
        rotary: turn queries and keys by their (row, column) positions (see `redi.models.rotary`).
        qk_norm: normalise queries and keys, each head by itself. LightningDiT: False; SFD, JiT and RiT: True.
        shift: modulate by shift and scale; False: by the scale alone, with a third fewer weights.

    Examples:
        >>> import torch
        >>> from redi.models.rotary import rotation_table
        >>> block = Modern(width=32, num_heads=2)
        >>> rotation = rotation_table(torch.cartesian_prod(torch.arange(4), torch.arange(4)), head_dim=16)
        >>> block(torch.randn(2, 16, 32), torch.zeros(2, 32), rotation).shape
        torch.Size([2, 16, 32])
    """

    def __init__(
        self, *, width: int, num_heads: int, mlp_ratio: float = 4.0, norm: Literal["rms", "layer"] = "rms",
        mlp: Literal["swiglu", "gelu"] = "swiglu", rotary: bool = True, qk_norm: bool = True, shift: bool = True,
    ):  # fmt: skip
        super().__init__(width=width, num_heads=num_heads)
        check_choice("Modern.norm", norm, tuple(NORMS))
        check_choice("Modern.mlp", mlp, ("swiglu", "gelu"))
        self.norm, self.rotary, self.qk_norm, self.shift = norm, rotary, qk_norm, shift
        self.norm1, self.norm2 = self.make_norm(), self.make_norm()
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if qk_norm:
            self.q_norm, self.k_norm = (self.make_norm(width // num_heads) for _ in range(2))
        hidden = int(mlp_ratio * width)
        if mlp == "swiglu":
            self.mlp: nn.Module = SwiGLU(width, int(2 / 3 * hidden))
        else:
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (6 if shift else 4) * width))

    def forward(self, tokens: Tensor, condition: Tensor, rotation: Tensor | None = None) -> Tensor:
        if self.shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulations(self.modulation, condition, 6)
        else:
            scale1, gate1, scale2, gate2 = modulations(self.modulation, condition, 4)
            shift1 = shift2 = scale1.new_zeros(())
        tokens = tokens + gate1 * self._attention(modulate(self.norm1(tokens), shift1, scale1), rotation)
        return tokens + gate2 * self.mlp(modulate(self.norm2(tokens), shift2, scale2))

    def _attention(self, tokens: Tensor, rotation: Tensor | None) -> Tensor:
        qkv = self.qkv(tokens)  # (N, T, 3 D)
        # Three separate views: a single view with a leading 3 would copy the gradients once more.
        q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=self.num_heads) for part in qkv.chunk(3, dim=-1))
        if self.qk_norm:  # in the precision of the weights, also under autocast
            q, k = self.q_norm(q.to(self.qkv.weight.dtype)), self.k_norm(k.to(self.qkv.weight.dtype))
        if self.rotary:
            if rotation is None:
                raise ValueError("Modern.rotary = True: needs a rotation table, which DiffusionTransformer supplies")
            q, k = rotated(q, rotation), rotated(k, rotation)
        attended = self.attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.projection(rearrange(attended, "n t h d -> n t (h d)"))

    def make_norm(self, width: int | None = None) -> nn.Module:
        return NORMS[self.norm](width or self.width, eps=1e-6, elementwise_affine=self.norm == "rms")


class SwiGLU(nn.Module):
    """The MLP w3(SiLU(gate) * up) (Shazeer, arXiv 2002.05202), where gate and up are the halves of one linear map.

    Examples:
        >>> import torch
        >>> SwiGLU(32, 84)(torch.randn(2, 16, 32)).shape
        torch.Size([2, 16, 32])
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * up)
