"""What the pretrained autoencoders of diffusers share: configuration, files, passes."""

import importlib.metadata
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from redi.models.autoencoders import Autoencoder
from redi.models.pretrained_network import PretrainedNetwork
from redi.runtime.hub_files import cached_hub_file, find_hub_file

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # diffusers' names, new and old
# Attention weights as diffusers called them when the published SD-VAE files were written, and today.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CLASSES = {"AutoencoderKL": "StableVAE", "AutoencoderTiny": "TinyVAE"}


class PretrainedAutoencoder(PretrainedNetwork, Autoencoder):
    """A frozen autoencoder in diffusers' format.

    Subclasses name the class of diffusers, say what its configuration means, and encode and decode one pass.
    """

    diffusers_class: ClassVar[str]
    known_configs: ClassVar[Mapping[str, dict]] = {}  # of hub ids, so that they can be built without any file

    def __init__(
        self,
        *,
        weights: str,
        weights_sha256: str | None,
        scale: float,
        shift: float,
        batch_size: int,
        precision: str,
        uint8_rule: str,
    ):
        super().__init__(weights=weights, weights_sha256=weights_sha256, precision=precision)
        if not scale > 0:
            raise ValueError(f"{self._binding('scale')} = {scale} must be positive")
        if batch_size < 1:
            raise ValueError(f"{self._binding('batch_size')} = {batch_size} must be at least 1")
        if uint8_rule not in ("round", "truncate"):
            raise ValueError(f"{self._binding('uint8_rule')} = {uint8_rule!r}: it is 'round' or 'truncate'")
        self.scale, self.shift, self.batch_size, self.uint8_rule = scale, shift, batch_size, uint8_rule
        self.config = self._read_config()
        self.channels, self.downsample = self._sizes(self.config)
        self._warn_of_another_scale()

    @abstractmethod
    def _sizes(self, config: dict) -> tuple[int, int]:
        """(channels, downsample) that a configuration means."""

    def _encode(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, 3, S, S) uint8 -> what `encode` gives for them in [-1, 1], `batch_size` at a time."""
        if images.shape[-1] % self.downsample or images.shape[-2] % self.downsample:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels cannot be encoded by {type(self).__name__}, "
                f"which divides the size by {self.downsample}: change Preprocessing.image_size"
            )
        return self._in_passes(lambda part: encode(part.float() / 127.5 - 1), images)

    def decode(self, latents: Tensor) -> Tensor:
        def decode(part: Tensor) -> Tensor:
            return self._to_uint8(self.network.decode(part.float() / self.scale + self.shift).sample.float())

        return self._in_passes(decode, latents)

    def _in_passes(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            parts = [function(part.to(self.anchor.device)) for part in inputs.split(self.batch_size)]
        return torch.cat(parts)  # outside, since autocast on the CPU cannot join float16

    def _to_uint8(self, images: Tensor) -> Tensor:
        if self.uint8_rule == "truncate":
            return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)

    def provenance(self) -> dict:
        # Neither id nor path: the same weights from the hub and from a folder are the same autoencoder everywhere.
        # What only `decode` depends on (uint8_rule) does not decide the latents.
        return {
            "autoencoder": type(self).__name__,
            "architecture": self._architecture(),
            "weights_sha256": self._known_sha256(),
            "scale": self.scale,
            "shift": self.shift,
            "precision": self.precision,
            "diffusers": importlib.metadata.version("diffusers"),
        }

    def stored_provenance(self) -> dict:
        return {key: value for key, value in self.provenance().items() if key not in ("scale", "shift")}

    @abstractmethod
    def _architecture(self) -> dict:
        """What of the configuration decides the function that given weights compute."""

    def _read_config(self) -> dict:
        name, folder = self._binding("weights"), self._folder()
        if folder is None and self.weights in self.known_configs:
            return self.known_configs[self.weights]
        if folder is None:
            path = find_hub_file(self.weights, CONFIG, binding=name, folder=(CONFIG, WEIGHTS[0]))
        else:
            path = folder / CONFIG
        if not path.is_file():
            hint = f"; bind {name} = '{folder / 'vae'}'" if (folder / "vae" / CONFIG).is_file() else ""
            raise ValueError(
                f"{name}: {folder} has no {CONFIG}, which stands beside the weights in diffusers' format{hint}"
            )
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{name}: {path} is not JSON: {error}") from None
        found = config.get("_class_name") if isinstance(config, dict) else None
        if found != self.diffusers_class:
            fitting = f": bind JointCodec.autoencoder = @{CLASSES[found]}()" if found in CLASSES else ""
            raise ValueError(f"{name}: {path} describes {found}, not {self.diffusers_class}{fitting}")
        if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
            raise ValueError(f"{name}: {path} describes an autoencoder of other than colour images")
        return config

    def _folder(self) -> Path | None:
        """The local folder that `weights` names, or that its file lies in; None for a hub id."""
        path = Path(self.weights).expanduser()
        return path if path.is_dir() else path.parent if path.is_file() else None

    def _weights_path(self) -> Path:
        name, folder = self._binding("weights"), self._folder()
        if folder is None:
            cached = (cached_hub_file(self.weights, file, binding=name) for file in WEIGHTS)
            found = next((path for path in cached if path), None)
            return found or find_hub_file(self.weights, WEIGHTS[0], binding=name, folder=(CONFIG, WEIGHTS[0]))
        if Path(self.weights).expanduser().is_file():
            return Path(self.weights).expanduser()
        for file in WEIGHTS:
            if (folder / file).is_file():
                return folder / file
        raise ValueError(f"{name}: {folder} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}")

    def _converted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name as in diffusers today: float32 tensor}"""
        return {_today(name): tensor.float() for name, tensor in tensors.items()}

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        logging.getLogger("xformers").setLevel(logging.ERROR)  # diffusers imports it where it is; it warns on a CPU
        import diffusers

        with torch.device("meta"):  # no memory, and no draw of the caller's random numbers
            network = getattr(diffusers, self.diffusers_class).from_config(self.config)
        expected, source = network.state_dict(), f"{self._binding('weights')} = {self.weights!r}: the weights"
        if lacking := sorted(expected.keys() - tensors.keys()):
            raise ValueError(f"{source} lack {', '.join(lacking[:3])} ({len(lacking)} names in all)")
        if surplus := sorted(tensors.keys() - expected.keys()):
            raise ValueError(f"{source} hold {', '.join(surplus[:3])} ({len(surplus)} names too many)")
        for key, tensor in tensors.items():
            if tensor.shape != expected[key].shape:
                shapes = f"{tuple(tensor.shape)} where {CONFIG} says {tuple(expected[key].shape)}"
                raise ValueError(f"{source} have {key} {shapes}")
        network.load_state_dict(tensors, assign=True)
        return network

    def _warn_of_another_scale(self) -> None:
        name, config = type(self).__name__, self.config
        for setting, key in (("scale", "scaling_factor"), ("shift", "shift_factor")):
            published, chosen = config.get(key), getattr(self, setting)
            if published is not None and published != chosen:
                log.warning("%s.%s = %s, but %s says %s = %s", name, setting, chosen, self.weights, key, published)


def _today(name: str) -> str:
    """The present name of a weight; conv-shaped or not, only the names of attention's parts changed."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1:
        parts[-2] = RENAMED.get(parts[-2], parts[-2])
    return ".".join(parts)
