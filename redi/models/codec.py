"""The joint codec, which maps images to the joint state x and back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redi.core.channels import Channels, Vector
from redi.core.inputs import check_maps
from redi.core.registry import configurable
from redi.models.alignments import Source, alignment_encoders
from redi.models.autoencoders import Autoencoder, autoencoders
from redi.models.autoencoders.pixels import Pixels
from redi.models.autoencoders.statistics import LatentStatistics
from redi.models.encoders import Encoder
from redi.models.pretrained_network import networks_in
from redi.models.reducers import Reducer
from redi.models.representation import Representation, by_name
from redi.runtime.checksums import json_sha256, tensors_sha256, without_versions
from redi.runtime.device import PRECISIONS
from redi.runtime.ranges import check_choice


@configurable
class JointCodec(nn.Module):
    """Map images to the joint state x (N, C, H, W) of image latents and representations, and back.

    Encoding has two steps so that a cache can store the result of the first. `precompute` runs the networks. `join`
    draws the latents, scales the representations, resizes them bilinearly to the latent grid (paper, section 3.1) and
    concatenates all groups.

    Args:
        autoencoder: default: `Pixels`.
        representations: without representations, the model is the DiT or SiT baseline.
        alignment: encoder (or a representation, for its encoder), or several, whose features REPA aligns hidden tokens
            with (see `JointObjective`). They are precomputed, but are not part of the joint state.
        precision: precision of encoders and pretrained autoencoders: 'float32' (their own setting; by default torch
            rounds convolutions on a GPU to TF32), 'tf32' (matrix products too) or 'bfloat16' (autocast; relative errors
            of about 1 %). On a GPU, a lower precision speeds up training without a cache.

    Examples:
        >>> codec = JointCodec(Pixels())
        >>> images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> torch.equal(codec.decode(codec.encode(images)), images)
        True
    """

    representations: Any  # nn.ModuleDict {name: Representation}
    alignments: Any  # nn.ModuleDict {name of the features: Encoder}

    def __init__(
        self, autoencoder: Autoencoder | None = None, representations: Sequence[Representation] = (), *,
        alignment: Source | Sequence[Source] | Mapping[str, Source] | None = None,
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ):  # fmt: skip
        super().__init__()
        check_choice("JointCodec.precision", precision, PRECISIONS)
        self.precision = precision
        self.autoencoder = Pixels() if autoencoder is None else autoencoder
        autoencoders.check(self.autoencoder, "JointCodec.autoencoder")
        self.alignments = alignment_encoders(alignment)
        self.representations = by_name(representations, taken=self.alignments)
        self._image_size: int | None = None  # the size that the channels of vectors were chosen for
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "JointCodec":
        return super().train(False)

    def for_image_size(self, image_size: int) -> "JointCodec":
        """Choose the channels of vectors for square images of this size in pixels; return this codec.

        `prepare`, `train`, `load` and `encode` call it. Without vectors, the channels do not depend on the size.
        Raises ValueError if a vector has other channels than for the size that was chosen before.
        """
        first = self._image_size = self._image_size or image_size
        if (before := self._channels(first)) != (now := self._channels(image_size)):
            what = f"images of {image_size} pixels, but the codec is used with images of {first} pixels"
            raise ValueError(f"{what}: {now} instead of {before}; use images of {first} pixels, or another codec")
        return self

    @property
    def channels(self) -> Channels:
        """The channel groups of the joint state. Raises ValueError for a codec with vectors before `for_image_size`."""
        return self._channels(self._image_size)

    def _channels(self, image_size: int | None) -> Channels:
        sizes: dict[str, Any] = {"image": self.autoencoder.channels}
        for name, representation in self.representations.items():
            sizes[name] = rank = representation.reducer.rank
            if representation.vector:
                if image_size is None:
                    what = f"JointCodec.channels depend on the size of the images, because {name} is a vector"
                    raise ValueError(f"{what}: call codec.for_image_size(256), or the size of your images, first")
                sizes[name] = Vector.on_grid(rank, self.grid(image_size))
        return Channels(**sizes)

    def grid(self, image_size: int) -> tuple[int, int]:
        """Return (H, W) of the joint state for square images of this size in pixels."""
        self.autoencoder.check_size(image_size)
        return (image_size // self.autoencoder.downsample,) * 2

    @torch.no_grad()
    def precompute(self, images: Tensor, *, alignment: bool = True) -> dict[str, Tensor]:
        """Run the networks on uint8 images (N, 3, S, S). Return the tensors that a cache stores.

        "image": the moments. "<representation>": (N, S, h, w) float16, where S is the number of stored channels (see
        `Reducer`). The names in `alignments`, unless `alignment` is False: (N, E, h, w) float16.
        """
        with networks_in(self.precision):  # contiguous, as in a cache: random numbers may depend on the memory layout
            stored = {"image": self.autoencoder.moments(images).contiguous()}
        for name, representation in self.representations.items():
            features = self._features(representation.features, representation.encoder, images)
            stored[name] = representation.reducer.project(features).half()
        for name, encoder in self.alignments.items() if alignment else ():
            stored[name] = self._features(encoder, encoder, images).half()
        return stored

    def _features(self, of: Callable[[Tensor], Tensor], encoder: Encoder, images: Tensor) -> Tensor:
        # Autocast is for encoders that are not pretrained networks. It may return bfloat16.
        autocast = torch.autocast(images.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with networks_in(self.precision), autocast:
            return check_maps(of(images), f"features of {type(encoder).__name__}").float()

    @torch.no_grad()
    def join(self, stored: Mapping[str, Tensor], randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """Return x (N, C, H, W) float32 from the output of `precompute`; `randn` as for `Autoencoder.latents`."""
        groups = {"image": self.autoencoder.latents(stored["image"], randn)}
        height, width = groups["image"].shape[-2:]
        for name, r in self.representations.items():
            groups[name] = self.channels.on_grid(name, r.reducer.finish(stored[name]), (height, width))
        return self.channels.join(groups)

    def encode(self, images: Tensor) -> Tensor:
        """Return x (N, C, H, W) float32 of uint8 images (N, 3, S, S)."""
        stored = self.precompute(images, alignment=False)
        return self.for_image_size(images.shape[-1]).join(stored)

    def encode_sample(self, dataset: Any, num_images: int = 1024) -> Tensor:
        """Return x, on the CPU, of at most `num_images` images spread evenly over a `Dataset` or `Cache`."""
        height, width = self.for_image_size(dataset.image_size).grid(dataset.image_size)
        # At most 64 million values: this limits the memory of statistics in float64.
        num_images = max(1, min(num_images, 2**26 // (self.channels.total * height * width)))
        batches = self.sample_batches(dataset, num_images)
        return torch.cat([(self.join(b) if "image" in b else self.encode(b["images"])).cpu() for b in batches])

    def sample_batches(self, dataset: Any, num_images: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches, on the codec's device, of images spread evenly over a `Dataset` or `Cache`."""
        if hasattr(dataset, "sample_positions"):  # a streamed cache: evenly spread positions would fetch all shards
            positions = dataset.sample_positions(num_images).tolist()
        else:
            positions = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
        for start in range(0, len(positions), 64):
            yield {name: t.to(self.device) for name, t in dataset.batch(positions[start : start + 64]).items()}

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Decode x (N, C, H, W) to uint8 images (N, 3, S, S). Only the image group is used."""
        return self.autoencoder.decode(self.channels.split(x)["image"])

    @property
    def device(self) -> torch.device:
        """Device of the networks, where images must be. Without networks: the CPU."""
        # Pretrained networks whose weights are not read yet have buffers, but no parameters.
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def statistics(self) -> LatentStatistics | None:
        """The statistics of the autoencoder, also of one inside another; None if it has none."""
        return next((part for part in self.autoencoder.modules() if isinstance(part, LatentStatistics)), None)

    @property
    def fitted(self) -> bool:
        """Whether every encoder, reducer and `LatentStatistics` is ready for use."""
        return self.can_precompute and (self.statistics is None or self.statistics.fitted)

    @property
    def can_precompute(self) -> bool:
        """Whether every encoder and reducer is ready for use, so that `precompute` can run."""
        return all(part.fitted for part in self.modules() if isinstance(part, Encoder | Reducer))

    def load(self) -> None:
        """Read all pretrained weights now instead of at first use. Raises ValueError if any are missing."""
        for part in self.modules():
            if isinstance(part, Autoencoder | Encoder | LatentStatistics):
                part.load()

    def learned_state(self, for_cache: bool = False) -> dict[str, Tensor]:
        """Return a copy of the state of what was learned from data; `for_cache`: only of what affects `precompute`."""
        # Copied, because representations may share an encoder, and safetensors refuses shared memory.
        trained = {f"{name}.reducer.{b}" for name, r in self.representations.items() for b in r.reducer.trained_buffers}
        state = self._learned(for_cache).state_dict().items()
        return {key: tensor.clone() for key, tensor in state if not (for_cache and key in trained)}

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return {group: the half of its reducer that trains with the network}, see `Reducer.trained_part`."""
        parts = ((name, r.reducer.trained_part()) for name, r in self.representations.items())
        return {name: part for name, part in parts if part is not None}

    def load_learned_state(self, state: Mapping[str, Tensor], for_cache: bool = False) -> None:
        """Restore the output of `learned_state`. Raises ValueError if it belongs to another codec."""
        learned = self._learned(for_cache)
        expected = {f"{name}.{part}" for name, parts in learned.items() for part in parts}
        stored = {".".join(key.split(".")[:2]) for key in state}
        if expected != stored:
            what = f"the stored codec has {sorted(stored)}, but the configured one has {sorted(expected)}"
            raise ValueError(f"{what}: set JointCodec.representations, and statistics, to those of the stored codec")
        try:
            learned.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the stored codec does not match the configured one: {error}") from None

    def _learned(self, for_cache: bool) -> Any:
        """Return the parts learned from data, an nn.ModuleDict {group: nn.ModuleDict {part: module}}."""
        parts: dict[str, dict[str, nn.Module]] = {
            name: ({"encoder": r.encoder} if r.encoder.learns_from_data else {}) | {"reducer": r.reducer}
            for name, r in self.representations.items()
        }
        parts |= {name: {"encoder": e} for name, e in self.alignments.items() if e.learns_from_data}
        if self.statistics is not None and self.statistics.in_checkpoints and not for_cache:
            parts["image"] = {"statistics": self.statistics}
        return nn.ModuleDict({name: nn.ModuleDict(modules) for name, modules in parts.items()})

    def provenance(self) -> dict:
        """Return everything that affects x, as JSON."""
        return self._provenance(lambda part: part.provenance())

    def fingerprint(self) -> str:
        """Return a hash of `provenance` without library versions: the key of results computed with this codec."""
        return json_sha256(without_versions(self.provenance()))

    def cache_provenance(self) -> dict:
        """Return everything that affects `precompute`, as JSON, without the rank and scale that `join` applies."""
        return self._provenance(lambda part: part.stored_provenance(), for_cache=True)

    def cache_fingerprint(self) -> str:
        """Return a hash of `cache_provenance` without library versions."""
        return json_sha256(without_versions(self.cache_provenance()))

    def _provenance(self, of: Callable[[Any], dict], for_cache: bool = False) -> dict:
        parts: dict[str, Any] = {"autoencoder": of(self.autoencoder), "representations": {}}
        for name, r in self.representations.items():
            group = {"encoder": r.encoder.provenance(), "reducer": of(r.reducer)}
            parts["representations"][name] = group | ({"vector": r.vector} if r.vector else {})
        parts["learned_sha256"] = tensors_sha256(self.learned_state(for_cache))
        parts |= {name: encoder.provenance() for name, encoder in self.alignments.items()}
        if self.precision != "float32":
            parts["precision"] = self.precision
        return parts
