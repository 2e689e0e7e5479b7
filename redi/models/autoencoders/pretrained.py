"""The base class of pretrained autoencoders in diffusers' format: configuration, weights, encoding and decoding."""

import importlib.metadata
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from redi.models.autoencoders import Autoencoder, autoencoders
from redi.models.autoencoders.statistics import LatentStatistics
from redi.models.pretrained_network import PretrainedNetwork
from redi.models.published.file import fit_names, read_published
from redi.runtime.checksums import tensors_sha256
from redi.runtime.hub_files import cached_hub_file, find_hub_file
from redi.runtime.paths import local_path
from redi.runtime.ranges import check_choice

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # diffusers' names, new and old
# Names of attention weights in diffusers: those in the published SD-VAE files, and today's.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD = re.compile(rf"(attentions\.\d+\.)({'|'.join(RENAMED)})(?=\.\w+$)")


class PretrainedAutoencoder(PretrainedNetwork, Autoencoder):
    """A frozen autoencoder in diffusers' format. Subclasses set the class attributes and implement `moments`.

    Args:
        weights: hub id, as owner/model/vae if the files are in the folder vae of the repository; or a folder in
            diffusers' format (config.json, diffusion_pytorch_model.safetensors or .bin), or the weights file in one.
        weights_sha256, precision: see `PretrainedNetwork`.
        scale, shift: the latents are (z - shift) * scale.
        statistics: `LatentStatistics` to use instead of scale and shift.
        batch_size: images per forward pass; limits the memory.
        uint8_rule: conversion of decoded x in [-1, 1]: 'round' rounds 127.5 x + 127.5, 'truncate' truncates
            127.5 x + 128, as the paper's released code does.

    Examples:
        >>> from redi.models.autoencoders import TinyVAE
        >>> vae = TinyVAE(scale=2.0, shift=0.5)
        >>> vae.latents(torch.ones(1, 4, 32, 32)).unique()  # (1 - shift) * scale
        tensor([1.])
    """

    weights: str
    diffusers_class: ClassVar[str]
    known_configs: ClassVar[Mapping[str, dict]]  # {hub id: config.json}, so that these need no file
    levels: ClassVar[tuple[str, int]]  # entry of the configuration with one value per level; default number of levels
    decisive: ClassVar[dict]  # entries that affect the output for the same weights, with diffusers' defaults
    to_uint8: ClassVar[tuple[float, float, float]] = (127.5, 127.5, 128.0)  # factor; what to add to round, to truncate

    def __init__(
        self, weights: str, *, weights_sha256: str | None = None, scale: float, shift: float = 0.0, batch_size: int,
        precision: Literal["float32", "bfloat16"] = "float32", uint8_rule: Literal["round", "truncate"] = "round",
        statistics: LatentStatistics | None = None,
    ):  # fmt: skip
        super().__init__(weights=weights, weights_sha256=weights_sha256, precision=precision)
        if not scale > 0:
            raise ValueError(f"{self._binding('scale')} = {scale}: must be positive")
        if batch_size < 1:
            raise ValueError(f"{self._binding('batch_size')} = {batch_size}: must be at least 1")
        check_choice(self._binding("uint8_rule"), uint8_rule, ("round", "truncate"))
        self.scale, self.shift, self.batch_size, self.uint8_rule = scale, shift, batch_size, uint8_rule
        self.statistics = self._check_statistics(statistics)
        self.config = self._read_config()
        self.channels, self.downsample = self._latent_shape()
        for name, key in (("scale", "scaling_factor"), ("shift", "shift_factor")):
            published, value = self.config.get(key), getattr(self, name)
            if statistics is None and published not in (None, value):
                log.warning("%s = %s, but %s publishes %s = %s", self._binding(name), value, weights, key, published)

    def _encode(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Scale uint8 images (N, 3, S, S) to [-1, 1] and apply `encode` to them, `batch_size` at a time."""
        for size in images.shape[-2:]:
            self.check_size(size)
        return self._in_passes(lambda part: encode(part.float() / 127.5 - 1), images)

    def _latent_shape(self) -> tuple[int, int]:
        """Return `channels` and `downsample`."""
        entry, num_levels = self.levels
        channels = self.config.get("latent_channels", self.decisive["latent_channels"])
        return channels, 2 ** (len(self.config.get(entry, num_levels * [64])) - 1)

    def _check_statistics(self, statistics: LatentStatistics | None) -> LatentStatistics | None:
        binding = self._binding("statistics")
        if not isinstance(statistics, LatentStatistics | None):
            raise ValueError(f"{binding} = {statistics!r}: must be a LatentStatistics object: @LatentStatistics()")
        parameters = inspect.signature(type(self)).parameters
        for name in ("scale", "shift") if statistics is not None else ():
            value = getattr(self, name)
            if name in parameters and value != parameters[name].default:  # a saved configuration holds the default
                raise ValueError(f"{self._binding(name)} = {value} has no effect with {binding}: remove one of the two")
        return statistics

    def latents(self, moments: Tensor, randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        return self._normalised(moments.float())

    def _normalised(self, z: Tensor) -> Tensor:
        return (z - self.shift) * self.scale if self.statistics is None else self.statistics(z)

    def _raw(self, latents: Tensor) -> Tensor:
        """Return z of `_normalised` latents."""
        return latents / self.scale + self.shift if self.statistics is None else self.statistics.inverse(latents)

    def decode(self, latents: Tensor) -> Tensor:
        factor, rounding, truncating = self.to_uint8

        def decode(part: Tensor) -> Tensor:
            x = factor * self.network.decode(self._raw(part.float())).sample.float()
            x = (x + rounding).round() if self.uint8_rule == "round" else x + truncating
            return x.clamp(0, 255).to(torch.uint8)

        return self._in_passes(decode, latents)

    def _in_passes(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with torch.no_grad(), self._autocast():
            parts = [function(part.to(self.anchor.device)) for part in inputs.split(self.batch_size)]
        return torch.cat(parts)  # outside the context: autocast on the CPU cannot concatenate float16

    def provenance(self) -> dict:
        # No hub id or path, because the hash identifies the weights; no uint8_rule, because it affects only `decode`.
        architecture = {key: self.config.get(key, default) for key, default in self.decisive.items()}
        scaled = {"scale": self.scale, "shift": self.shift}
        return {
            "autoencoder": type(self).__name__, "architecture": architecture, "weights_sha256": self._sha256(),
            **(scaled if self.statistics is None else {"statistics": self.statistics.provenance()}),
            "precision": self.precision, "diffusers": importlib.metadata.version("diffusers"),
        }  # fmt: skip

    def stored_provenance(self) -> dict:
        return {key: value for key, value in self.provenance().items() if key not in ("scale", "shift", "statistics")}

    def _read_config(self) -> dict:
        name, folder = self._binding("weights"), self._folder()
        if folder is None and self.weights in self.known_configs:
            return self.known_configs[self.weights]
        path = self._hub_file(CONFIG) if folder is None else folder / CONFIG
        if not path.is_file():
            vae = path.parent / "vae"
            hint = f"set {name} = '{vae}'" if (vae / CONFIG).is_file() else "copy it there, or choose another folder"
            raise ValueError(f"{name}: {folder} has no {CONFIG}, which diffusers' format needs: {hint}")
        try:
            config = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{name}: {path} is not JSON: {error}") from None
        kind = config.get("_class_name") if isinstance(config, dict) else None
        if kind != self.diffusers_class:
            names = [name for name in autoencoders if getattr(autoencoders[name], "diffusers_class", None) == kind]
            hint = f"set JointCodec.autoencoder = @autoencoders.{names[0]}()" if names else "choose another autoencoder"
            raise ValueError(f"{name}: {path} describes {kind}, not {self.diffusers_class}: {hint}")
        if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
            raise ValueError(f"{name}: {path} has other than 3 image channels: choose an autoencoder of RGB images")
        return config

    def _folder(self) -> Path | None:
        """Return the local folder of the weights; None for a hub id."""
        path = local_path(self.weights)
        return path if path.is_dir() else path.parent if path.is_file() else None

    def _hub_file(self, name: str) -> Path:
        repo_id, in_repo = self._hub_name(name)
        folder = (self._hub_name(CONFIG)[1], self._hub_name(WEIGHTS[0])[1])
        return find_hub_file(repo_id, in_repo, binding=self._binding("weights"), folder=folder)

    def _hub_name(self, name: str) -> tuple[str, str]:
        """Return the repository, and the path in it, of a file."""
        in_folder = re.fullmatch(r"[^/]+/[^/]+/vae", self.weights) is not None
        return self.weights.removesuffix("/vae") if in_folder else self.weights, "vae/" * in_folder + name

    def _weights_path(self) -> Path:
        binding, folder = self._binding("weights"), self._folder()
        if folder is None:
            cached = (cached_hub_file(*self._hub_name(file), binding=binding) for file in WEIGHTS)
            return next(filter(None, cached), None) or self._hub_file(WEIGHTS[0])
        paths = (local_path(self.weights), *(folder / file for file in WEIGHTS))
        return next(filter(Path.is_file, paths), folder)

    def _tensors_and_sha256(self, path: Path) -> tuple[dict[str, Tensor], str]:
        stored = read_published(path, names=(), binding=self._binding("weights")).state()
        tensors = {OLD.sub(lambda m: m[1] + RENAMED[m[2]], name): tensor.float() for name, tensor in stored.items()}
        return tensors, tensors_sha256(tensors)

    def _new_network(self, device: str = "meta", **changes) -> Any:
        """Build the network of the configuration. On 'meta' it takes no memory and keeps the caller's random state."""
        logging.getLogger("xformers").setLevel(logging.ERROR)  # diffusers imports it, which warns on a CPU
        import diffusers

        with torch.device(device):
            return getattr(diffusers, self.diffusers_class).from_config(self.config | changes)

    def _build(self, path: Path, tensors: dict[str, Tensor]) -> nn.Module:
        network = self._new_network()
        try:
            network.load_state_dict(fit_names(tensors, network.state_dict()), assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise ValueError(f"{self._binding('weights')}: {path} does not match its {CONFIG}: {reason}") from None
        return network
