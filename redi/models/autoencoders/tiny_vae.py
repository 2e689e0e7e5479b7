"""A small distilled autoencoder (TAESD), for previews and experiments where the large one is too slow."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from redi.models.autoencoders import register
from redi.models.autoencoders.pretrained import PretrainedAutoencoder

# config.json of the hub repository madebyollin/taesd; the entries that diffusers needs to build the network.
TAESD = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "decoder_block_out_channels": (64, 64, 64, 64),
    "encoder_block_out_channels": (64, 64, 64, 64),
    "in_channels": 3,
    "latent_channels": 4,
    "num_decoder_blocks": (3, 3, 3, 1),
    "num_encoder_blocks": (1, 3, 3, 3),
    "out_channels": 3,
    "upsampling_scaling_factor": 2,
}


@register
class TinyVAE(PretrainedAutoencoder):
    """TAESD, or any other AutoencoderTiny of diffusers, frozen; deterministic.

    It imitates the SD-VAE's *scaled* latents, so its own scale is 1: its latents can stand where StableVAE's with
    scale 0.18215 do. Stored are the latents as the network gives them, in float16.

    Args:
        weights, weights_sha256, batch_size, precision, uint8_rule: see `StableVAE`.
        scale, shift: the latents are (z - shift) * scale.

    Raises:
        ValueError: as `StableVAE`.
    """

    diffusers_class = "AutoencoderTiny"
    known_configs = {"madebyollin/taesd": TAESD}

    def __init__(
        self,
        *,
        weights: str = "madebyollin/taesd",
        weights_sha256: str | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
        batch_size: int = 32,
        precision: Literal["float32", "bfloat16"] = "float32",
        uint8_rule: Literal["round", "truncate"] = "round",
    ):
        super().__init__(
            weights=weights, weights_sha256=weights_sha256, scale=scale, shift=shift, batch_size=batch_size,
            precision=precision, uint8_rule=uint8_rule,
        )  # fmt: skip

    def _sizes(self, config: dict) -> tuple[int, int]:
        return config.get("latent_channels", 4), 2 ** (len(config.get("encoder_block_out_channels", (64,) * 4)) - 1)

    def moments(self, images: Tensor) -> Tensor:
        return self._encode(images, lambda part: self.network.encode(part).latents.half())

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        return (moments.float() - self.shift) * self.scale

    def _architecture(self) -> dict:
        defaults = {"latent_channels": 4, "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
        return {key: self.config.get(key, default) for key, default in defaults.items()}

    def _read_config(self) -> dict:
        # diffusers writes a second copy of decoder_block_out_channels, and warns of it when it reads it again.
        return {key: value for key, value in super()._read_config().items() if key != "block_out_channels"}
