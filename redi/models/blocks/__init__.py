"""Blocks of the diffusion transformer: attention and MLP, modulated by a condition."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from redi.core.registry import Registry, discover
from redi.models.attention import attend_sdpa
from redi.models.attention_backends import Attention


class Block(nn.Module, ABC):
    """Map tokens (N, T, D) to tokens (N, T, D), for a condition.

    A component implements `forward` and `make_norm`, and passes the arguments below to `super().__init__`. Its
    submodule `modulation` maps the condition to shifts, scales and gates, and starts at zero; its other linear layers
    are initialised by Xavier's rule. It calls `self.attend(q, k, v)` on tensors (N, T, heads, head width).

    Args:
        width: D, the model width.
        num_heads: attention heads, a divisor of the width.
        mlp_ratio: hidden width of the MLP relative to D.

    Examples:
        >>> from redi.models.blocks import AdaLN, Modern
        >>> tokens, condition = torch.randn(2, 16, 32), torch.zeros(2, 32)
        >>> for block in AdaLN(width=32, num_heads=2), Modern(width=32, num_heads=2, rotary=False):
        ...     print(tuple(block(tokens, condition).shape))
        (2, 16, 32)
        (2, 16, 32)
    """

    attend: Attention
    rotary = False  # True: `forward` needs a rotation, see `redi.models.rotary`

    def __init__(self, *, width: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        if width % num_heads:
            setting = f"num_heads = {num_heads}: must divide the width {width}"
            raise ValueError(f"DiffusionTransformer.{setting} (of a wide head: head_num_heads, head_width)")
        self.width, self.num_heads, self.attend = width, num_heads, attend_sdpa

    @abstractmethod
    def forward(self, tokens: Tensor, condition: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Return tokens (N, T, D).

        Args:
            tokens: (N, T, D).
            condition: (N, D), or (N, T, D) with a condition for every token.
            rotation: (2, T, D / heads), the cosines and sines of `rotation_table`.
        """

    @abstractmethod
    def make_norm(self) -> nn.Module:
        """Return a new norm like those of the block, for the final layer of the model."""


def initialise(block: Block) -> None:
    """Initialise a block: its modulation is zero, so it starts as the identity (adaLN-zero); the rest is Xavier's."""
    for name, part in block.named_children():
        for layer in (layer for layer in part.modules() if isinstance(layer, nn.Linear)):
            (nn.init.zeros_ if name == "modulation" else nn.init.xavier_uniform_)(layer.weight)
            nn.init.zeros_(layer.bias)


def in_float32(layers: nn.Module, x: Tensor) -> Tensor:
    """Apply layers in the precision of their weights, normally float32, even under autocast.

    In bfloat16, the condition (N, D) would round 1 + scale in every block, and the residual stream would be bfloat16.
    """
    if x.is_meta:  # autocast does not support this device
        return layers(x)
    with torch.autocast(x.device.type, enabled=False):
        return layers(x)


def modulations(layers: nn.Module, condition: Tensor, number: int) -> tuple[Tensor, ...]:
    """Return `number` modulations of tokens, each (N, 1, D) for a condition (N, D), or (N, T, D) for (N, T, D)."""
    parts = in_float32(layers, condition).chunk(number, dim=-1)
    return tuple(part[:, None] for part in parts) if condition.ndim == 2 else parts


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens * (1 + scale) + shift for tokens (N, T, D) and modulations that broadcast against them."""
    return tokens * (1 + scale) + shift


blocks = Registry("blocks", Block, runtime=("width", "num_heads", "mlp_ratio"))
register = blocks.register
discover(__name__, blocks)
