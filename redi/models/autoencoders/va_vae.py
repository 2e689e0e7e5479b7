"""Autoencoders in the key layout of CompVis: those of VA-VAE (arXiv 2501.01423), SFD and REPA-E."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from redi.models.autoencoders import register
from redi.models.autoencoders.stable_vae import StableVAE
from redi.models.pretrained_network import with_defaults
from redi.models.published.file import read_published
from redi.runtime.checksums import tensors_sha256
from redi.runtime.hub_files import find_hub_file
from redi.runtime.paths import local_path

HUB = "hustvl/vavae-imagenet256-f16d32-dinov2"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
TRAINING = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")  # parts that only training needs, and averages
ANCHORS = [
    *(f"{part}.{layer}.weight" for part in ("encoder", "decoder") for layer in ("conv_in", "conv_out")),
    "encoder.down.0.block.0.conv1.weight",
]
GROUPS = 32  # of every GroupNorm
# Names in diffusers, and in the file. The levels of the decoder are counted from the other end.
RENAMED = (
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"), (r"down_blocks", "down"), (r"resnets", "block"), (r"attentions", "attn"),
    (r"(down|up)samplers\.0", r"\1sample"), (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"), (r"to_([qkv])", r"\1"), (r"to_out\.0", "proj_out"),
)  # fmt: skip


def _config(widths: list[int], *, latent_channels: int = 32, layers: int = 2, attention=None, quant=True, mid=True):
    """Return diffusers' configuration; `attention` is (levels of the encoder, levels of the decoder) with attention."""
    levels, (down, up) = range(len(widths)), attention or 2 * ([len(widths) - 1],)
    return {
        "_class_name": "AutoencoderKL", "block_out_channels": widths, "latent_channels": latent_channels,
        "layers_per_block": layers, "norm_num_groups": GROUPS, "mid_block_add_attention": mid,
        "down_block_types": [f"{'Attn' * (level in down)}DownEncoderBlock2D" for level in levels],
        "up_block_types": [f"{'Attn' * (level in up)}UpDecoderBlock2D" for level in reversed(levels)],
        "use_quant_conv": quant, "use_post_quant_conv": quant,
    }  # fmt: skip


@register
class VAVAE(StableVAE):
    """The frozen autoencoder of VA-VAE, or any other in the key layout of CompVis, such as SFD's and REPA-E's.

    The file is a state dict, alone or in a checkpoint; parts that only training needs are ignored. The tensors' shapes
    determine the architecture. The published latents are normalised per channel: bind `VAVAE.statistics`.

    Args:
        weights: the weights file, or the hub id of VA-VAE.
        scale, shift: used without statistics.
        posterior: see `StableVAE`. LightningDiT and SFD draw z once, as 'frozen' does.
        weights_sha256: hash of the encoder and decoder, without the parts for training; see `PretrainedAutoencoder`.
        batch_size, precision: see `PretrainedAutoencoder`.
        uint8_rule: 'truncate' as LightningDiT and SFD.

    Examples:
        >>> vae = VAVAE()  # weights are read at first use
        >>> vae.channels, vae.downsample
        (32, 16)
    """

    known_configs = {HUB: _config([128, 128, 256, 256, 512])}

    __init__ = with_defaults(StableVAE.__init__, HUB, scale=1.0, uint8_rule="truncate")

    def _weights_path(self) -> Path:
        if self.weights in self.known_configs and not local_path(self.weights).exists():
            return find_hub_file(self.weights, f"{Path(self.weights).name}.pt", binding=self._binding("weights"))
        return local_path(self.weights)

    def _read_config(self) -> dict:
        if self.weights in self.known_configs and not local_path(self.weights).exists():
            return self.known_configs[self.weights]
        path = self._weights_path()
        tensors = self._tensors(path)
        if missing := [name for name in ANCHORS if name not in tensors]:
            other = any(name.startswith("encoder.down_blocks.") for name in tensors)
            advice = "bind @autoencoders.StableVAE() for files of diffusers" if other else "choose another file"
            raise ValueError(f"{self._binding('weights')}: {path} has no {', '.join(missing)}: {advice}")
        config = _infer(tensors)
        widths, image = config["block_out_channels"], tensors["encoder.conv_in.weight"].shape[1]
        if image != 3 or any(width % GROUPS for width in widths):
            what = f"{image} image channels and levels of {', '.join(map(str, widths))} channels"
            raise ValueError(f"{self._binding('weights')}: {path} has {what}: must be 3, and multiples of {GROUPS}")
        return config

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of the encoder and the decoder, averaged if the file has averages."""
        stored = read_published(path, names=ANCHORS, binding=self._binding("weights")).state()
        if surplus := [name for name in stored if not name.startswith(PARTS + TRAINING)]:
            names = ", ".join(surplus[:5])
            raise ValueError(f"{self._binding('weights')}: {path} has unknown tensors ({names}): remove them")
        kept = {name: tensor for name, tensor in stored.items() if name.startswith(PARTS)}
        # CompVis stores averages under the names without dots.
        return {name: stored.get(f"model_ema.{name.replace('.', '')}", tensor) for name, tensor in kept.items()}

    def _tensors_and_sha256(self, path: Path) -> tuple[dict[str, Tensor], str]:
        tensors = {name: tensor.float() for name, tensor in self._tensors(path).items()}
        return tensors, tensors_sha256(tensors)

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        network = self._new_network()
        expected, levels = network.state_dict(), len(self.config["block_out_channels"])
        names = {_name_in_file(name, levels): name for name in expected}
        # Attention is a 1x1 convolution in the file and a linear layer in diffusers.
        stored = {n: t.flatten(1) if ".attn" in n and t.ndim == 4 else t for n, t in tensors.items()}
        both = names.keys() & stored.keys()
        differences = {
            "lacks": names.keys() - both, "has unknown tensors:": stored.keys() - both,
            "has other shapes in": {name for name in both if stored[name].shape != expected[names[name]].shape},
        }  # fmt: skip
        reasons = [f"{what} {', '.join(sorted(wrong)[:5])}" for what, wrong in differences.items() if wrong]
        if reasons:
            raise ValueError(f"{self._binding('weights')}: {path} {'; '.join(reasons)}: choose an undamaged file")
        network.load_state_dict({names[name]: tensor for name, tensor in stored.items()}, assign=True)
        return network


def _infer(tensors: Mapping[str, Tensor]) -> dict:
    """Return diffusers' configuration of these tensors, named as in the file."""
    convolutions = (tensors.get(f"encoder.down.{level}.block.0.conv1.weight") for level in range(len(tensors)))
    widths = [len(tensor) for tensor in convolutions if tensor is not None]
    attention = [
        {int(match[1]) for name in tensors if (match := re.match(rf"{part}\.(\d+)\.attn\.", name))}
        for part in (r"encoder\.down", r"decoder\.up")
    ]
    return _config(
        widths, latent_channels=tensors["decoder.conv_in.weight"].shape[1], attention=attention,
        layers=sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in tensors),
        quant="quant_conv.weight" in tensors, mid=any(name.startswith("encoder.mid.attn_1.") for name in tensors),
    )  # fmt: skip


def _name_in_file(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
