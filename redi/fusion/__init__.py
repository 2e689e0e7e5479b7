"""Fusion: embed the channel groups as one token sequence, and predict them from it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.registry import Registry, discover

CONDITION = "condition"  # the embedding of `add_condition`


class Fusion(nn.Module, ABC):
    """Patch embeddings W_emb and output heads W_dec, one pair per channel group (paper, section 3.3).

    All maps share the latent grid (H, W) and one table of 2-D sin-cos positions. A vector (see `Channels`) is one token
    without a position, embedded by a linear layer and LayerNorm as in REG (arXiv 2507.01467); the V vectors come first
    in the sequence. A component implements `embed`, `tokens_of` and `num_tokens`, and passes the arguments below to
    `super().__init__`. It may override `unembed` and `embed_group`.

    Args:
        channels: the channel groups of the joint state.
        grid: the latent grid (H, W).
        patch_size: p, which must divide the grid. There are P = H W / p^2 patches.
        width: D, the model width.
        variance_groups: groups with a second output per channel (see `Process.variance_groups`).
        condition_dim: E of the features that `add_condition` takes; None: it takes none.

    Examples:
        >>> from redi.fusion import Merged, Separate
        >>> settings = {"channels": Channels(image=4, dinov2=8), "grid": (32, 32), "patch_size": 2, "width": 64}
        >>> x = torch.randn(1, 12, 32, 32)
        >>> for fusion in Merged(**settings), Separate(**settings):
        ...     tokens = fusion.embed(x)
        ...     print(tuple(tokens.shape), tuple(fusion.unembed(tokens).shape))
        (1, 256, 64) (1, 12, 32, 32)
        (1, 512, 64) (1, 12, 32, 32)
    """

    positions: Tensor  # (P, D)

    def __init__(
        self, *, channels: Channels, grid: tuple[int, int], patch_size: int, width: int,
        variance_groups: Sequence[str] = (), condition_dim: int | None = None,
    ):  # fmt: skip
        super().__init__()
        if grid[0] % patch_size or grid[1] % patch_size:
            setting = f"DiffusionTransformer.patch_size = {patch_size}"
            raise ValueError(f"{setting}: must divide both sides of the latent grid {grid[0]}x{grid[1]}")
        self.channels, self.patch_size, p = channels, patch_size, patch_size
        self.patch_grid = (grid[0] // p, grid[1] // p)
        outputs = {name: channels.vectors.get(name, p * p * c) for name, c in channels.items()}
        embeddings: dict[str, nn.Module] = {n: nn.Conv2d(channels[n], width, p, stride=p) for n in channels.maps}
        heads = {name: nn.Linear(width, number) for name, number in outputs.items()}
        variance_heads = {name: nn.Linear(width, outputs[name]) for name in variance_groups}
        embeddings |= {
            name: nn.Sequential(nn.Linear(length, width), nn.LayerNorm(width, eps=1e-6))
            for name, length in channels.vectors.items()
        }
        self.embeddings, self.heads = nn.ModuleDict(embeddings), nn.ModuleDict(heads)
        self.variance_heads = nn.ModuleDict(variance_heads)
        self.register_buffer("positions", sincos_positions(self.patch_grid, width), persistent=False)
        for embedding in embeddings.values():
            layer: Any = embedding[0] if isinstance(embedding, nn.Sequential) else embedding
            nn.init.xavier_uniform_(layer.weight.flatten(1))  # convolutions too, as linear layers on patches
            nn.init.zeros_(layer.bias)
        for head in (*heads.values(), *variance_heads.values()):  # adaLN-zero: the untrained model predicts 0
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        if condition_dim is not None:
            self.embeddings[CONDITION] = layer = nn.Linear(condition_dim, width, bias=False)
            nn.init.xavier_uniform_(layer.weight)

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Embed a joint state (N, C, H, W) as tokens (N, T, D), with positions added."""

    @abstractmethod
    def tokens_of(self, tokens: Tensor) -> Mapping[str, Tensor]:
        """Return the tokens that each head reads: (N, T, D) -> {group: (N, P, D)}; (N, 1, D) for a vector."""

    def unembed(self, tokens: Tensor) -> Tensor:
        """Return the prediction (N, C, H, W) from tokens (N, T, D), followed by the channels of `variance_groups`."""
        groups, (h, w), p = self.tokens_of(tokens), self.patch_grid, self.patch_size

        def channels_of(name: str, head: nn.Module) -> Tensor:
            predicted = head(groups[name])
            if name in self.channels.vectors:
                return self.channels.stored(name, predicted[:, 0], (h * p, w * p))
            # The outputs of a head are ordered (row, column, channel), as in the published checkpoints.
            return rearrange(predicted, "n (h w) (p q c) -> n c (h p) (w q)", h=h, w=w, p=p, q=p)

        return torch.cat([channels_of(*head) for head in (*self.heads.items(), *self.variance_heads.items())], dim=1)

    def embed_group(self, name: str, group: Tensor) -> Tensor:
        """Embed one group without positions: (N, C_m, H, W) -> (N, P, D); a vector -> (N, 1, D)."""
        if name in self.channels.vectors:
            return self.embeddings[name](self.channels.vector(name, group))[:, None]
        return rearrange(self.embeddings[name](group), "n d h w -> n (h w) d")

    def embed_vectors(self, groups: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tokens of all vectors, each (N, 1, D), the first ones of the sequence."""
        return [self.embed_group(name, groups[name]) for name in self.channels.vectors]

    def add_condition(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Add features (N, P, E), an input that is not diffused, to embedded images (N, P, D).

        The features of every patch pass a LayerNorm without weights and a linear layer without bias, which together
        with the patch embedding is one layer over patch values and features. Features of 0 add 0.
        """
        return tokens + self.embeddings[CONDITION](functional.layer_norm(features, features.shape[-1:]))

    def split_vectors(self, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Split (N, T, D) into {vector: (N, 1, D)} and the tokens of maps, (N, T - V, D)."""
        vectors = {name: tokens[:, i : i + 1] for i, name in enumerate(self.channels.vectors)}
        return vectors, tokens[:, len(vectors) :]

    @property
    def coordinates(self) -> Tensor:
        """The (row, column) of every token on the grid of patches, (T, 2); (0, 0) for a vector.

        Tokens of maps follow those of vectors, one grid after the other.
        """
        grid = torch.cartesian_prod(*(torch.arange(side, device=self.positions.device) for side in self.patch_grid))
        number = len(self.channels.vectors)
        return torch.cat([grid.new_zeros(number, 2), grid.repeat((self.num_tokens - number) // len(grid), 1)])

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """T, the length of the token sequence."""


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return the fixed 2-D sin-cos position table (P, D) of MAE and DiT.

    The first half of D encodes the column, the second half the row. Each half holds the sines, then the cosines, of
    frequencies 10000^(-2k/(D/2)).
    """
    if width % 4:
        raise ValueError(f"DiffusionTransformer.width = {width}: must be a multiple of 4 for 2-D sin-cos positions")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    halves = []
    for position in (columns, rows):
        angles = position.flatten().double()[:, None] * frequencies  # (P, D/4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


RUNTIME = "channels", "grid", "patch_size", "width", "variance_groups", "condition_dim"
fusions = Registry("fusion", Fusion, runtime=RUNTIME)
register = fusions.register
discover(__name__, fusions)
