"""Embeddings of the time."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from redi.models.blocks import in_float32
from redi.runtime.ranges import check_choice


class TimestepEmbedding(nn.Module):
    """Sines and cosines of t, followed by an MLP: (N,) -> (N, D).

    Args:
        width: D.
        features: 'sinusoidal': 128 cosines and sines of t times 10000^(-k/128), as in DiT; 'gaussian': 256 sines and
            cosines of 2 pi t w, as in DiT-DH (arXiv 2510.11690). The frequencies w are drawn from N(0, 1) and stay
            fixed; they are a parameter without a gradient, so that checkpoints and averages hold them.
        scale: factor of t.

    Examples:
        >>> TimestepEmbedding(width=32)(torch.rand(4)).shape
        torch.Size([4, 32])
    """

    frequencies: Tensor | None  # (256,), of Gaussian features

    def __init__(self, width: int, *, features: Literal["sinusoidal", "gaussian"] = "sinusoidal", scale: float = 1.0):
        super().__init__()
        check_choice("DiffusionTransformer.timestep_features", features, ("sinusoidal", "gaussian"))
        self.scale = scale
        frequencies = nn.Parameter(torch.randn(256), requires_grad=False) if features == "gaussian" else None
        self.register_parameter("frequencies", frequencies)
        inputs = 256 if frequencies is None else 512
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def initialise(self) -> None:
        """Draw the weights from N(0, 0.02^2), as in DiT."""
        for parameter in self.mlp.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.ndim == 2 else nn.init.zeros_(parameter)

    def forward(self, t: Tensor) -> Tensor:
        t = self.scale * t.float()[:, None]  # in float32, for t up to 999
        if self.frequencies is None:
            angles = t * torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)  # (N, 128)
            waves = [angles.cos(), angles.sin()]
        else:
            angles = t * self.frequencies.float() * (2 * math.pi)  # (N, 256)
            waves = [angles.sin(), angles.cos()]
        return in_float32(self.mlp, torch.cat(waves, dim=-1).to(next(self.mlp.parameters()).dtype))


def group_width(width: int, num_groups: int, by: str) -> int:
    """Return the width of the time embedding of each group: by 'concatenation', an equal part of the model's width."""
    check_choice("DiffusionTransformer.group_times_by", by, ("sum", "concatenation"))
    if by == "concatenation" and width % num_groups:
        what = f"the width {width} must be a multiple of the number of groups, {num_groups}"
        raise ValueError(f"DiffusionTransformer.group_times_by = {by!r}: {what}")
    return width // num_groups if by == "concatenation" else width
