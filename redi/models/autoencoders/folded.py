"""Space to depth around an autoencoder, so that the grid of its latents is the grid of the tokens."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from redi.models.autoencoders import Autoencoder, autoencoders, register
from redi.models.autoencoders.pixels import Pixels
from redi.models.autoencoders.statistics import LatentStatistics
from redi.runtime.ranges import check_number


def fold(z: Tensor, factor: int) -> Tensor:
    """Move blocks of factor x factor positions into the channels: (N, C, H, W) -> (N, C factor^2, H/factor, W/factor).

    The channel of (c, row, column) is factor^2 c + factor row + column, as in FLUX.2 and `nn.PixelUnshuffle`.
    """
    return rearrange(z, "n c (h p) (w q) -> n (c p q) h w", p=factor, q=factor)


def unfold(z: Tensor, factor: int) -> Tensor:
    """Return the latents that `fold` folded."""
    return rearrange(z, "n (c p q) h w -> n c (h p) (w q)", p=factor, q=factor)


@register
class Folded(Autoencoder):
    """Another autoencoder with folded latents: C factor^2 channels on a grid of H/factor x W/factor.

    A transformer of patch size 1 on it has the tokens of patch size `factor` without it, and representations keep a
    resolution of one token each. The cache is that of the other autoencoder.

    Args:
        autoencoder: the other autoencoder, with or without statistics of its own; default: `Pixels`.
        statistics: `LatentStatistics` of the folded latents, on top of a scale and shift of the other autoencoder.

    Examples:
        >>> from redi.models.autoencoders import Pixels
        >>> folded = Folded(Pixels(), factor=2)
        >>> folded.channels, folded.downsample
        (12, 2)
        >>> images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal(folded.decode(folded.latents(folded.moments(images))), images)
        True
    """

    def __init__(
        self, autoencoder: Autoencoder | None = None, *, factor: int = 2, statistics: LatentStatistics | None = None
    ):
        super().__init__()
        autoencoder = Pixels() if autoencoder is None else autoencoder
        autoencoders.check(autoencoder, "Folded.autoencoder")
        check_number("Folded.factor", factor, 2)
        if statistics is not None and any(isinstance(part, LatentStatistics) for part in autoencoder.modules()):
            name = type(autoencoder).__name__
            raise ValueError(f"Folded.statistics: {name} has statistics, too: remove one of the two bindings")
        self.autoencoder, self.factor, self.statistics = autoencoder, factor, statistics
        self.channels, self.downsample = autoencoder.channels * factor**2, autoencoder.downsample * factor

    @property
    def stores(self) -> Autoencoder:
        return self.autoencoder.stores

    def load(self) -> None:
        self.autoencoder.load()

    def check_size(self, image_size: int) -> None:
        self.autoencoder.check_size(image_size)
        super().check_size(image_size)

    def moments(self, images: Tensor) -> Tensor:
        for size in images.shape[-2:]:
            self.check_size(size)
        return self.autoencoder.moments(images)

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        folded = fold(self.autoencoder.latents(moments, randn), self.factor)
        return folded if self.statistics is None else self.statistics(folded)

    def decode(self, latents: Tensor) -> Tensor:
        folded = latents if self.statistics is None else self.statistics.inverse(latents)
        return self.autoencoder.decode(unfold(folded, self.factor))

    def provenance(self) -> dict:
        inner = {"autoencoder": "Folded", "factor": self.factor, "inner": self.autoencoder.provenance()}
        return inner if self.statistics is None else inner | {"statistics": self.statistics.provenance()}

    def stored_provenance(self) -> dict:
        return self.autoencoder.stored_provenance()
