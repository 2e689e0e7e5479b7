"""A small distilled autoencoder (TAESD), for previews and experiments where the large one is too slow."""

from functools import partialmethod

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
    scale 0.18215 do. Stored are the latents as the network gives them, in float16. Arguments: `PretrainedAutoencoder`.
    """

    diffusers_class = "AutoencoderTiny"
    known_configs = {"madebyollin/taesd": TAESD}
    levels = ("encoder_block_out_channels", 4)
    decisive = {"latent_channels": 4, "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}

    __init__ = partialmethod(PretrainedAutoencoder.__init__, weights="madebyollin/taesd", scale=1.0, batch_size=32)

    def moments(self, images: Tensor) -> Tensor:
        return self._encode(images, lambda part: self.network.encode(part).latents.half())

    def _read_config(self) -> dict:
        # diffusers writes a second copy of decoder_block_out_channels, and warns of it when it reads it again.
        return {key: value for key, value in super()._read_config().items() if key != "block_out_channels"}
