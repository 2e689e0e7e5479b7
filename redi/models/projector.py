"""REPA's projectors: from hidden tokens of the transformer to features of an encoder (Yu et al., arXiv 2410.06940)."""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor, nn

from redi.runtime.ranges import check_choice


class Convolution(nn.Module):
    """iREPA's projector: a 3 x 3 convolution on the grid of the tokens, (N, P, D) -> (N, P, E).

    Examples:
        >>> import torch
        >>> Convolution(32, 24, grid=(4, 4))(torch.randn(2, 16, 32)).shape
        torch.Size([2, 16, 24])
    """

    def __init__(self, width: int, dim: int, *, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.convolution = nn.Conv2d(width, dim, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = rearrange(tokens, "n (h w) d -> n d h w", h=self.grid[0])
        return rearrange(self.convolution(maps), "n e h w -> n (h w) e")


class Projectors(nn.ModuleDict):
    """One projector for each of several encoders: (N, P, D) -> {name: (N, P, E)}.

    Examples:
        >>> import torch
        >>> projectors = Projectors({"alignment_clip": nn.Linear(32, 24), "alignment_dinov2": nn.Linear(32, 16)})
        >>> {name: tokens.shape[-1] for name, tokens in projectors(torch.randn(2, 16, 32)).items()}
        {'alignment_clip': 24, 'alignment_dinov2': 16}
    """

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {name: projector(tokens) for name, projector in self.items()}


def build_projector(
    kind: str, width: int, hidden: int, dim: int | Mapping[str, int], grid: tuple[int, int]
) -> nn.Module:
    """Return a projector to features of width `dim`, or `Projectors` for a mapping {name: dim}.

    `kind` is 'mlp' (three layers with SiLU between them, as in REPA) or 'conv'.
    """
    check_choice("DiffusionTransformer.alignment_projector", kind, ("mlp", "conv"))
    if isinstance(dim, Mapping):
        return Projectors({name: build_projector(kind, width, hidden, e, grid) for name, e in dim.items()})
    if kind == "conv":
        return Convolution(width, dim, grid=grid)
    layers = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
