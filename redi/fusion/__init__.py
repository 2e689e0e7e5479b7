"""Fusion strategies: how the channel groups become one token sequence and come back; the registry of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.core.registry import Registry, discover


class Fusion(nn.Module, ABC):
    """Patch embeddings and output heads of every channel group (paper, section 3.3: W_emb and W_dec per stream).

    All groups lie on the same latent grid (H, W), so one table of 2-D sin-cos positions serves them all. A component
    implements `embed`, `tokens_of` and `num_tokens`, and hands the arguments below on to `super().__init__`. It may
    override `unembed` and `embed_group`.

    Args:
        patch_size: p; P = HW / p^2 patches. Raises ValueError where it does not divide the grid.
        width: D, the model width.
        variance_groups: groups with a second output per channel (see `Process.variance_groups`).
    """

    def __init__(
        self,
        *,
        channels: Channels,
        grid: tuple[int, int],
        patch_size: int,
        width: int,
        variance_groups: Sequence[str] = (),
    ):
        super().__init__()
        if grid[0] % patch_size or grid[1] % patch_size:
            setting = f"DiffusionTransformer.patch_size = {patch_size}"
            raise ValueError(f"{setting} does not divide the latent grid {grid[0]}x{grid[1]}")
        self.channels = channels
        self.patch_size = patch_size
        self.patch_grid = (grid[0] // patch_size, grid[1] // patch_size)
        p = patch_size
        self.embeddings = nn.ModuleDict({name: nn.Conv2d(c, width, p, stride=p) for name, c in channels.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(width, p * p * c) for name, c in channels.items()})
        self.variance_heads = nn.ModuleDict({n: nn.Linear(width, p * p * channels[n]) for n in variance_groups})
        self.register_buffer("positions", sincos_positions(self.patch_grid, width), persistent=False)  # (P, D)
        for embedding in self.embeddings.values():
            nn.init.xavier_uniform_(embedding.weight.flatten(1))  # as the linear layer on patches that it is
            nn.init.zeros_(embedding.bias)
        for head in (*self.heads.values(), *self.variance_heads.values()):  # adaLN-zero: the untrained model gives 0
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Joint state (N, C, H, W) -> tokens (N, T, D), positions included."""

    @abstractmethod
    def tokens_of(self, tokens: Tensor) -> Mapping[str, Tensor]:
        """Tokens (N, T, D) -> {group: (N, P, D)}, what each group's head reads."""

    def unembed(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D) -> joint prediction (N, C, H, W), then the second outputs of `variance_groups`."""
        groups, (h, w), p = self.tokens_of(tokens), self.patch_grid, self.patch_size
        patches = [head(groups[name]) for name, head in (*self.heads.items(), *self.variance_heads.items())]
        # The rows of the heads are ordered (row, column, channel), as published.
        maps = [rearrange(part, "n (h w) (p q c) -> n c (h p) (w q)", h=h, w=w, p=p, q=p) for part in patches]
        return torch.cat(maps, dim=1)

    def embed_group(self, name: str, group: Tensor) -> Tensor:
        """One group (N, C_m, H, W) -> (N, P, D), with its bias where it has one, without positions."""
        return rearrange(self.embeddings[name](group), "n d h w -> n (h w) d")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """T, the length of the token sequence."""


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sin-cos position table (P, D): the first half of D encodes the column, the second the row.

    Each half holds sines, then cosines, of frequencies 10000^(-2k/(D/2)) (as in MAE and DiT).
    """
    if width % 4:
        raise ValueError(f"DiffusionTransformer.width = {width} must be a multiple of 4 for 2-D sin-cos positions")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    halves = []
    for position in (columns, rows):
        angles = position.flatten().double()[:, None] * frequencies  # (P, D/4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


fusions = Registry("fusion", Fusion, runtime=("channels", "grid", "patch_size", "width", "variance_groups"))
register = fusions.register
discover(__name__, fusions)
