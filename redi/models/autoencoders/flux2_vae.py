"""The autoencoder of FLUX.2, in diffusers' format."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from redi.models.autoencoders import register
from redi.models.autoencoders.folded import fold, unfold
from redi.models.autoencoders.pretrained import PretrainedAutoencoder
from redi.models.autoencoders.statistics import LatentStatistics


@register
class Flux2VAE(PretrainedAutoencoder):
    """The VAE of FLUX.2, or any other AutoencoderKLFlux2 of diffusers, frozen and deterministic.

    The mean of the posterior, 32 channels at 1/8 of the image size, is folded to 128 channels at 1/16 (see `Folded`)
    and normalised with the statistics of the batch norm in the weights file, as in diffusers' Flux2Pipeline. A cache
    stores the mean in float16.

    Args:
        statistics: `LatentStatistics` of the folded latents; default: those of the weights file.
        weights, weights_sha256, batch_size, precision, uint8_rule: see `PretrainedAutoencoder`. The default is the
            gated FLUX.2-dev, with the configuration that diffusers has as default (not compared with the hub).

    Examples:
        >>> vae = Flux2VAE()  # weights are read at first use
        >>> vae.channels, vae.downsample
        (128, 16)
    """

    diffusers_class = "AutoencoderKLFlux2"
    known_configs = {"black-forest-labs/FLUX.2-dev/vae": {"_class_name": "AutoencoderKLFlux2"}}
    levels = ("block_out_channels", 4)
    decisive = {
        "block_out_channels": [128, 256, 512, 512], "latent_channels": 32, "act_fn": "silu", "norm_num_groups": 32,
        "patch_size": [2, 2], "batch_norm_eps": 1e-4,
    }  # fmt: skip

    def __init__(
        self, weights: str = "black-forest-labs/FLUX.2-dev/vae", *, weights_sha256: str | None = None,
        batch_size: int = 8, precision: Literal["float32", "bfloat16"] = "float32",
        uint8_rule: Literal["round", "truncate"] = "round", statistics: LatentStatistics | None = None,
    ):  # fmt: skip
        super().__init__(
            weights=weights, weights_sha256=weights_sha256, scale=1.0, batch_size=batch_size, precision=precision,
            uint8_rule=uint8_rule, statistics=statistics,
        )  # fmt: skip
        self.factor = self.config.get("patch_size", (2, 2))[0]
        self.channels, self.downsample = self.channels * self.factor**2, self.downsample * self.factor
        if statistics is None:
            self.statistics = _BatchNormStatistics(self._read_weights, self.config.get("batch_norm_eps", 1e-4))

    def moments(self, images: Tensor) -> Tensor:
        return self._encode(images, lambda part: self.network.encode(part).latent_dist.mode().half())

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        return super().latents(fold(moments, self.factor))

    def _raw(self, latents: Tensor) -> Tensor:
        return unfold(super()._raw(latents), self.factor)


class _BatchNormStatistics(LatentStatistics):
    """The running statistics of the batch norm in the weights file, which `read` reads at first use."""

    in_checkpoints = False

    def __init__(self, read: Callable[[], tuple[Path, dict[str, Tensor]]], eps: float):
        super().__init__("the weights", rule="variance", eps=eps)
        self.read = read

    def _read(self, _: Path) -> tuple[Tensor, Tensor]:
        path, tensors = self.read()
        self.source = f"Flux2VAE.weights: bn in {path}"
        if missing := {"bn.running_mean", "bn.running_var"} - set(tensors):
            raise ValueError(f"{self.source} lacks {', '.join(sorted(missing))}: download the file again")
        return tensors["bn.running_mean"], tensors["bn.running_var"]
