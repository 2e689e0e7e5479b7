"""Autoencoders: images to latents and back, and the registry of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from redi.core.registry import Registry, discover


class Autoencoder(nn.Module, ABC):
    """uint8 images (N, 3, S, S) to latents (N, channels, S/downsample, S/downsample), frozen.

    Encoding has two halves: `moments` is deterministic and is what caches store; `latents` may draw from them.
    """

    channels: int
    downsample: int

    def load(self) -> None:
        """Reads pretrained weights now instead of at first use, so that missing ones show before anything is run.

        Raises:
            ValueError: they are nowhere to be found; the message names the file, its source and the binding.
        """

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) uint8 -> what to store, (N, ?, H, W), in its storage dtype."""

    @abstractmethod
    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Stored moments -> scaled latents (N, channels, H, W) float32.

        Args:
            randn: all that is random comes from this function; training on several processes gives another one.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, channels, H, W) -> images (N, 3, S, S) uint8."""

    @abstractmethod
    def provenance(self) -> dict:
        """What decides the latents, as JSON: settings and weights."""

    def stored_provenance(self) -> dict:
        """What decides `moments`, as JSON: a cache fits all autoencoders for which this is the same."""
        return self.provenance()


autoencoders = Registry("autoencoders", Autoencoder, harmless=("weights",))
register = autoencoders.register
discover(__name__, autoencoders)
