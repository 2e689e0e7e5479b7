"""The variational autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), in diffusers' format."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from redi.models.autoencoders import register
from redi.models.autoencoders.pretrained import PretrainedAutoencoder
from redi.models.pretrained_network import with_keywords_of
from redi.runtime.ranges import check_choice

# config.json of the hub repositories in `known_configs`, without entries that equal the defaults of diffusers.
SD_VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 256,
}  # fmt: skip


@register
class StableVAE(PretrainedAutoencoder):
    """The VAE of Stable Diffusion, or any other AutoencoderKL of diffusers, frozen.

    The latents are (z - shift) * scale, where z is drawn from the posterior N(mean, std^2). A cache stores mean and
    log-variance (or, for 'frozen', z) in float16. To train from a cache on a machine without the weights, bind
    `weights_sha256`, which identifies them.

    Args:
        scale, shift: 0.18215 and 0 for the SD-VAE; for other VAEs see their config.json.
        posterior: 'sample' draws z in every training step; 'mean' uses the mean; 'frozen' draws z once, when images
            are encoded, with noise that is a function of the image's bytes.
        weights, weights_sha256, batch_size, precision, uint8_rule, statistics: see `PretrainedAutoencoder`.

    Examples:
        >>> vae = StableVAE(posterior="mean")  # weights are read at first use
        >>> moments = torch.randn(2, 8, 32, 32)  # mean and log-variance of two 256-pixel images
        >>> torch.allclose(vae.latents(moments), 0.18215 * moments[:, :4])
        True
    """

    diffusers_class = "AutoencoderKL"
    known_configs = {"stabilityai/sd-vae-ft-ema": SD_VAE, "stabilityai/sd-vae-ft-mse": SD_VAE}
    levels = ("block_out_channels", 1)
    decisive = {"block_out_channels": [64], "latent_channels": 4, "act_fn": "silu", "norm_num_groups": 32}

    @with_keywords_of(PretrainedAutoencoder.__init__)
    def __init__(
        self, weights: str = "stabilityai/sd-vae-ft-ema", *, scale: float = 0.18215,
        posterior: Literal["sample", "mean", "frozen"] = "sample", batch_size: int = 8, **settings: Any,
    ):  # fmt: skip
        check_choice(self._binding("posterior"), posterior, ("sample", "mean", "frozen"))
        super().__init__(weights, scale=scale, batch_size=batch_size, **settings)
        self.posterior = posterior

    def moments(self, images: Tensor) -> Tensor:
        moments = self._encode(images, self._moments)  # (N, 2C, H, W)
        if self.posterior != "frozen":
            return moments.half()
        noise = torch.stack([_noise_of(image, (self.channels, *moments.shape[2:])) for image in images])
        mean, std = _mean_and_std(moments)
        return (mean + std * noise.to(mean.device)).half()

    def _moments(self, images: Tensor) -> Tensor:
        moments = self.network.encode(images).latent_dist.parameters.float()
        moments[:, self.channels :].clamp_(-30, 20)  # the log-variance, as in diffusers
        return moments

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        stored = self.channels if self.posterior == "frozen" else 2 * self.channels
        if moments.shape[1] != stored:
            binding, needed = self._binding("posterior"), f"{stored} stored channels, not {moments.shape[1]}"
            what = f"{binding} = {self.posterior!r} needs {needed}"
            raise ValueError(f"{what}: set it and {self._binding('weights')} as when the images were encoded")
        if self.posterior == "frozen":
            return super().latents(moments)
        z, std = _mean_and_std(moments.float())
        if self.posterior == "sample":
            # Not randn_like: its numbers depend on the memory layout, which differs between a cache and the network.
            z = z + std * randn(z.shape, dtype=z.dtype, device=z.device)
        return super().latents(z)

    def provenance(self) -> dict:
        return super().provenance() | {"posterior": self.posterior}

    def stored_provenance(self) -> dict:
        # 'sample' and 'mean' use the same stored moments.
        return super().stored_provenance() | {"posterior": "frozen" if self.posterior == "frozen" else "moments"}


def _mean_and_std(moments: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = rearrange(moments, "n (two c) h w -> two n c h w", two=2)
    return mean, (0.5 * logvar).exp()


def _noise_of(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise that depends only on the image's bytes, not on its position, batch or device."""
    digest = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator)
