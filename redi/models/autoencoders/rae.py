"""Representation autoencoders (arXiv 2510.11690): a frozen encoder's features are the latents. Needs transformers."""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.models.autoencoders import register
from redi.models.autoencoders.pretrained import PretrainedAutoencoder
from redi.models.pretrained_network import with_defaults

# DINOv2-B with registers and the decoder ViT-XL, without entries that equal the defaults of diffusers.
DINOV2_B = {
    "_class_name": "AutoencoderRAE", "decoder_hidden_size": 1152, "decoder_num_hidden_layers": 28,
    "decoder_intermediate_size": 4096,
}  # fmt: skip
EPS = 1e-5  # diffusers adds it to the std of the file


@register
class RAE(PretrainedAutoencoder):
    """The encoder and decoder of RAE, as diffusers' AutoencoderRAE, frozen and deterministic.

    The encoder is DINOv2 with registers, SigLIP2 or MAE; the latents are its last layer, normalised without weights:
    (N, 768, 16, 16) of 256-pixel images for DINOv2-B. A cache stores them in float16. Needs
    `pip install 'redi-diffusion[rae]'`.

    Args:
        weights, weights_sha256, batch_size, precision: see `PretrainedAutoencoder`.
        statistics: instead of the normalisation that the file holds, which in diffusers is (z - mean) / (std + 1e-5).
            RAE's own is `LatentStatistics(path, rule='variance', eps=1e-5)` with its file of the variance.
        scale, shift: applied after the normalisation of the file.
        uint8_rule: conversion of decoded x in [0, 1]: 'truncate' truncates 255 x, as RAE does; 'round' rounds it.

    Examples:
        >>> rae = RAE()  # weights are read at first use
        >>> rae.channels, rae.downsample, rae.image_size
        (768, 16, 256)
    """

    diffusers_class = "AutoencoderRAE"
    to_uint8 = (255.0, 0.0, 0.0)
    known_configs = {"nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08": DINOV2_B}
    decisive = {
        "encoder_type": "dinov2", "encoder_input_size": 224, "encoder_patch_size": 14, "patch_size": 16,
        "decoder_num_attention_heads": 16, "scaling_factor": 1.0,
    }  # fmt: skip

    __init__ = with_defaults(
        PretrainedAutoencoder.__init__, *known_configs, scale=1.0, batch_size=8, uint8_rule="truncate"
    )

    @property
    def image_size(self) -> int:
        """The only size of images, in pixels: that of the decoder's grid."""
        config = self.decisive | self.config
        return config["encoder_input_size"] // config["encoder_patch_size"] * config["patch_size"]

    def check_size(self, image_size: int) -> None:
        if image_size != self.image_size:
            what = f"RAE cannot encode images of {image_size} pixels, because its decoder makes {self.image_size}"
            raise ValueError(f"{what}: set Preprocessing.image_size = {self.image_size}")
        super().check_size(image_size)

    def load(self) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ImportError("autoencoders.RAE needs transformers: pip install 'redi-diffusion[rae]'")
        super().load()

    def moments(self, images: Tensor) -> Tensor:
        return self._encode(images, lambda part: self.network.encode((part + 1) / 2).latent.half())

    def stored_provenance(self) -> dict:
        return super().stored_provenance() | {"normalised": self.statistics is None}

    def _latent_shape(self) -> tuple[int, int]:
        return self.config.get("encoder_hidden_size", 768), self.config.get("patch_size", 16)

    def _read_config(self) -> dict:
        # Without mean and std, which the weights file holds too.
        config = super()._read_config() | {"reshape_to_2d": True}
        return {key: value for key, value in config.items() if key not in ("latents_mean", "latents_std")}

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        blank = {"_latents_mean": torch.zeros(1), "_latents_std": torch.full((1,), 1 - EPS)}  # no normalisation
        rest = {name: tensor for name, tensor in tensors.items() if name != "decoder.decoder_pos_embed"}
        try:
            network = super()._build(path, rest | blank)
        except AttributeError as error:  # SigLIP2 with diffusers 0.42 and transformers 5
            versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "transformers"))
            what = f"encoder_type = {self.config['encoder_type']!r} cannot be built with {versions} ({error})"
            raise ValueError(f"{self._binding('weights')}: {path}: {what}: install other versions of them") from None
        with torch.random.fork_rng(devices=[]):  # the buffers that files lack: they do not depend on the depth
            small = self._new_network("cpu", encoder_num_hidden_layers=0, decoder_num_hidden_layers=0)
        buffers = {name: buffer for name, buffer in small.named_buffers() if name not in rest}
        if self.statistics is None:
            buffers |= {name: tensors[name] for name in blank if name in tensors}
        for name, buffer in buffers.items():
            owner, _, last = name.rpartition(".")
            setattr(network.get_submodule(owner), last, buffer)
        return network
