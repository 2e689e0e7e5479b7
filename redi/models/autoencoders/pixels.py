"""The identity autoencoder: the pixels are the latents."""

from collections.abc import Callable

import torch
from einops import repeat
from torch import Tensor

from redi.models.autoencoders import Autoencoder, register

# ITU-R BT.601, as in PIL's convert("L")
LUMA = (0.299, 0.587, 0.114)


@register
class Pixels(Autoencoder):
    """uint8 pixels as latents in [-1, 1].

    Args:
        channels: 3 for colour; 1 keeps only the luma, for grey images.

    Examples:
        >>> pixels = Pixels()
        >>> images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal(pixels.decode(pixels.latents(pixels.moments(images))), images)
        True
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"Pixels.channels = {channels}: must be 1 (grey) or 3 (colour)")
        self.channels, self.downsample = channels, 1

    def moments(self, images: Tensor) -> Tensor:
        if self.channels == 3:
            return images
        weights = images.new_tensor(LUMA, dtype=torch.float32)
        return torch.einsum("nchw,c->nhw", images.float(), weights).round().to(torch.uint8)[:, None]

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        return moments.float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        # Rounding makes decode(latents(moments)) exact. The paper's released code truncates 127.5 x + 128 instead.
        images = (latents.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return images if self.channels == 3 else repeat(images, "n 1 h w -> n c h w", c=3)

    def provenance(self) -> dict:
        return {"autoencoder": "Pixels", "channels": self.channels}
