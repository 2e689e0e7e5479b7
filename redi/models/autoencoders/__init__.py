"""Autoencoders: images to latents and back, and the registry of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from redi.core.inputs import Checked, check_images, check_maps
from redi.core.registry import Registry, discover


class Autoencoder(Checked, nn.Module, ABC):
    """uint8 images (N, 3, S, S) to latents (N, channels, S/downsample, S/downsample), frozen.

    Encoding has two halves: `moments` is deterministic and is what caches store; `latents` may draw from them. A
    component sets `channels` and `downsample` and implements `moments`, `latents`, `decode` and `provenance`. It may
    override `load`, `check_size` and `stored_provenance`.
    """

    takes = {"moments": check_images, "decode": check_maps}
    channels: int
    downsample: int

    def load(self) -> None:
        """Read pretrained weights now instead of at first use. Raises ValueError naming the file, its source and the
        binding if they are missing.
        """

    def check_size(self, image_size: int) -> None:
        """Raises ValueError where images of this size in pixels cannot be encoded."""
        if image_size % self.downsample:
            raise ValueError(
                f"images of {image_size} pixels cannot be encoded by {type(self).__name__}, which divides the size by "
                f"{self.downsample}: change Preprocessing.image_size"
            )

    @abstractmethod
    def moments(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) uint8 -> what to store, (N, ?, H, W), in its storage dtype."""

    @abstractmethod
    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Stored moments -> scaled latents (N, channels, H, W) float32; `randn` draws all that is random."""

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
