"""Autoencoders: their interface and registry. An autoencoder maps images to latents and back."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from redi.core.inputs import Checked, check_images, check_maps
from redi.core.registry import Registry, discover
from redi.models.autoencoders.statistics import LatentStatistics


class Autoencoder(Checked, nn.Module, ABC):
    """Map uint8 images (N, 3, S, S) to latents (N, channels, S/downsample, S/downsample) and back, frozen.

    Encoding has two steps: `moments` is deterministic, and caches store its output; `latents` may draw random numbers.
    A component sets `channels` and `downsample` and implements `moments`, `latents`, `decode` and `provenance`. It may
    override `load`, `check_size` and `stored_provenance`.

    Examples:
        >>> class Halves(Autoencoder):  # every second pixel
        ...     channels, downsample = 3, 2
        ...     def moments(self, images): return images[:, :, ::2, ::2]
        ...     def latents(self, moments, randn=torch.randn): return moments / 127.5 - 1
        ...     def decode(self, latents): return (127.5 * latents + 127.5).byte().repeat_interleave(2, 2)
        ...     def provenance(self): return {"autoencoder": "Halves"}
        >>> Halves().moments(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 4, 4])
    """

    takes = {"moments": check_images, "decode": check_maps}
    channels: int
    downsample: int
    statistics: LatentStatistics | None  # that normalise the latents, instead of scale and shift

    def __init__(self) -> None:
        super().__init__()
        self.statistics = None

    @property
    def stores(self) -> "Autoencoder":
        """The autoencoder whose moments caches store: another one if this one only changes its latents."""
        return self

    def load(self) -> None:
        """Read pretrained weights now instead of at first use. Raises ValueError if they are missing."""

    def check_size(self, image_size: int) -> None:
        """Raise ValueError if images of this size in pixels cannot be encoded, or the statistics do not fit them."""
        if image_size % self.downsample:
            what = f"{type(self).__name__} cannot encode images of {image_size} pixels"
            raise ValueError(f"{what}: set Preprocessing.image_size to a multiple of {self.downsample}")
        if self.statistics is not None:
            self.statistics.check(self.channels, *2 * (image_size // self.downsample,))

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Encode uint8 images (N, 3, S, S) to the tensor that caches store, (N, ?, H, W), in its storage dtype."""

    @abstractmethod
    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Return scaled latents (N, channels, H, W) float32 from moments. All random numbers come from `randn`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (N, channels, H, W) to uint8 images (N, 3, S, S)."""

    @abstractmethod
    def provenance(self) -> dict:
        """Return everything that affects the latents, as JSON: settings and weights."""

    def stored_provenance(self) -> dict:
        """Return everything that affects `moments`, as JSON. Autoencoders with equal values share a cache."""
        return self.provenance()


autoencoders = Registry("autoencoders", Autoencoder, harmless=("weights",))
register = autoencoders.register
discover(__name__, autoencoders)
