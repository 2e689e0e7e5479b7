"""TAESD, a small distilled autoencoder, for previews and for experiments where the SD-VAE is too slow."""

from torch import Tensor

from redi.models.autoencoders import register
from redi.models.autoencoders.pretrained import PretrainedAutoencoder
from redi.models.pretrained_network import with_defaults

TAESD = {"_class_name": "AutoencoderTiny"}  # madebyollin/taesd uses the defaults of diffusers


@register
class TinyVAE(PretrainedAutoencoder):
    """TAESD, or any other AutoencoderTiny of diffusers, frozen and deterministic. Arguments: `PretrainedAutoencoder`.

    The unscaled latents (scale 1) approximate the scaled latents of the SD-VAE. A cache stores them in float16.

    Examples:
        >>> vae = TinyVAE()  # weights are read at first use
        >>> vae.channels, vae.downsample
        (4, 8)
    """

    diffusers_class = "AutoencoderTiny"
    known_configs = {"madebyollin/taesd": TAESD}
    levels = ("encoder_block_out_channels", 4)
    decisive = {"latent_channels": 4, "act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}

    __init__ = with_defaults(PretrainedAutoencoder.__init__, "madebyollin/taesd", scale=1.0, batch_size=32)

    def moments(self, images: Tensor) -> Tensor:
        return self._encode(images, lambda part: self.network.encode(part).latents.half())

    def _read_config(self) -> dict:
        # A copy of decoder_block_out_channels, which diffusers writes but warns about when it reads it.
        return {key: value for key, value in super()._read_config().items() if key != "block_out_channels"}
