"""The joint codec: images to the joint state x and back."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from redi.core.channels import Channels
from redi.core.inputs import check_maps
from redi.core.registry import configurable
from redi.core.resize import resized
from redi.models.autoencoders import Autoencoder, autoencoders
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders import Encoder, encoders
from redi.models.pretrained_network import networks_in
from redi.models.reducers import Reducer, reducers
from redi.runtime.checksums import json_sha256, tensors_sha256, without_versions
from redi.runtime.device import PRECISIONS

# What stands beside the groups' names in batches, in losses and in the log.
RESERVED = {
    "images", "labels", "alignment", "vlb", "loss", "step", "gradient_norm", "images_per_second", "learning_rate",
}  # fmt: skip


@configurable
class Representation(nn.Module):
    """A frozen encoder and the reducer of its features; one channel group of the joint state.

    Args:
        name: of the channel group; default: the encoder's name.
    """

    def __init__(self, encoder: Encoder, reducer: Reducer, *, name: str | None = None):
        super().__init__()
        encoders.check(encoder, "Representation.encoder")
        reducers.check(reducer, "Representation.reducer")
        try:
            reducer.check_width(encoder.dim)
        except ValueError as error:
            raise ValueError(f"{error} of {type(encoder).__name__}") from None
        self.encoder, self.reducer, self.name = encoder, reducer, name or encoder.name
        if not self.name.isidentifier() or self.name in RESERVED or hasattr(nn.ModuleDict, self.name):
            reason = "it is no identifier, or means something else in batches, losses or logs"
            setting = f"Representation.name = {self.name!r} cannot name a channel group"
            raise ValueError(f"{setting}: {reason}. Choose another, such as {encoder.name!r}")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> reduced features on the encoder's own grid (N, R, h, w) float32."""
        return self.reducer(self.encoder(images))


@configurable
class JointCodec(nn.Module):
    """Owns the autoencoder, the representations and the `Channels` of the joint state.

    Encoding has two halves, so that a cache can stand between them: `precompute` runs the networks; `join` draws the
    latents, scales the representations, resizes them bilinearly to the latent grid (paper, section 3.1) and joins all.

    Args:
        autoencoder: default: pixels.
        representations: none is the plain model.
        alignment: the encoder whose features REPA aligns hidden tokens with (see `JointObjective`); they are
            precomputed, but are no part of the joint state.
        precision: of encoders and pretrained autoencoders in `precompute`: 'float32' (each in its own; torch's default
            rounds convolutions on a GPU to TF32), 'tf32' (products too) or 'bfloat16' (autocast; errors of about a
            hundredth of the features). Lower it to train without a cache on a GPU. Reducers run in float32.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | None = None,
        representations: Sequence[Representation] = (),
        *,
        alignment: Encoder | None = None,
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"JointCodec.precision = {precision!r}: it is 'float32', 'tf32' or 'bfloat16'")
        self.precision = precision
        self.autoencoder = Pixels() if autoencoder is None else autoencoder
        autoencoders.check(self.autoencoder, "JointCodec.autoencoder")
        for representation in representations:
            if not isinstance(representation, Representation):
                raise ValueError(
                    f"JointCodec.representations takes Representation objects, got {representation!r}. "
                    "For example: JointCodec.representations = [Representation()]"
                )
        if alignment is not None:
            encoders.check(alignment, "JointCodec.alignment")
        names = [representation.name for representation in representations]
        if len({"image", *names}) <= len(names):
            raise ValueError(f"every channel group needs a name of its own, got image and {names}: Representation.name")
        self.representations = nn.ModuleDict({r.name: r for r in representations})
        self.alignment = alignment
        self.channels = Channels(image=self.autoencoder.channels, **{r.name: r.reducer.rank for r in representations})
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "JointCodec":
        return super().train(False)

    def grid(self, image_size: int) -> tuple[int, int]:
        """(H, W) of the joint state for square images of this size."""
        self.autoencoder.check_size(image_size)
        side = image_size // self.autoencoder.downsample
        return side, side

    @torch.no_grad()
    def precompute(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) uint8 -> what a cache stores: image moments, (N, S, h, w) float16 per representation (S: see
        `Reducer`), and "alignment" (N, E, h, w) float16 where there is such an encoder.
        """
        with networks_in(self.precision):
            # Contiguous, as a cache gives them: what is drawn for them may follow the layout in memory.
            stored = {"image": self.autoencoder.moments(images).contiguous()}
        for name, representation in self.representations.items():
            stored[name] = representation.reducer.project(self._features(representation.encoder, images)).half()
        if self.alignment is not None:
            stored["alignment"] = self._features(self.alignment, images).half()
        return stored

    def _features(self, encoder: Encoder, images: Tensor) -> Tensor:
        # Autocast for encoders that are not pretrained networks, whose features may then be bfloat16.
        autocast = torch.autocast(images.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with networks_in(self.precision), autocast:
            return check_maps(encoder(images), f"features of {type(encoder).__name__}").float()

    @torch.no_grad()
    def join(self, stored: Mapping[str, Tensor], randn: Callable[..., Tensor] = torch.randn) -> Tensor:
        """What `precompute` gave -> x (N, C, H, W) float32; `randn` as for `Autoencoder.latents`."""
        latents = self.autoencoder.latents(stored["image"], randn)
        groups = {"image": latents}
        for name, representation in self.representations.items():
            groups[name] = resized(representation.reducer.finish(stored[name]), latents.shape[-2:])
        return self.channels.join(groups)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) uint8 -> x (N, C, H, W) float32."""
        return self.join(self.precompute(images))

    def encode_sample(self, dataset, num_images: int = 1024) -> Tensor:
        """x of at most `num_images` images spread evenly over a `Dataset` or `Cache`, on the CPU; fewer where they
        would have more than 64 million values, because statistics are taken in float64.
        """
        height, width = self.grid(dataset.image_size)
        num_images = max(1, min(num_images, 2**26 // (self.channels.total * height * width)))
        if hasattr(dataset, "sample_positions"):  # of a stream, which would fetch all shards for an even spread
            positions = dataset.sample_positions(num_images).tolist()
        else:
            positions = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
        parts = []
        for start in range(0, len(positions), 64):
            batch = {name: t.to(self.device) for name, t in dataset.batch(positions[start : start + 64]).items()}
            parts.append(self.join(batch if "image" in batch else self.precompute(batch["images"])).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> images (N, 3, S, S) uint8; only the image group is read."""
        return self.autoencoder.decode(self.channels.split(x)["image"])

    @property
    def device(self) -> torch.device:
        """Where its networks are, and so where images must be; the CPU for a codec without networks."""
        # Networks whose weights are read at first use have no parameters before it, but buffers.
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def fitted(self) -> bool:
        """Whether every encoder and reducer is ready."""
        aligned = self.alignment is None or self.alignment.fitted
        return aligned and all(r.encoder.fitted and r.reducer.fitted for r in self.representations.values())

    def load(self) -> None:
        """Read all pretrained weights now, not at first use. Raises ValueError where some are missing."""
        for network in (self.autoencoder, *(r.encoder for r in self.representations.values()), self.alignment):
            if network is not None:
                network.load()

    def learned_state(self) -> dict[str, Tensor]:
        """What was learned from data: the state of all reducers, and of encoders trained here."""
        return {
            f"{name}.{part}.{key}": tensor
            for name, part, module in self._learned_modules()
            for key, tensor in module.state_dict().items()
        }

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `learned_state`. Raises ValueError where it was written for another codec."""
        expected = {f"{name}.{part}" for name, part, _ in self._learned_modules()}
        stored = {".".join(key.split(".")[:2]) for key in state}
        if expected != stored:
            raise ValueError(f"the stored codec has {sorted(stored)}, the configured one {sorted(expected)}")
        for name, part, module in self._learned_modules():
            prefix = f"{name}.{part}."
            try:
                module.load_state_dict({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
            except RuntimeError as error:
                raise ValueError(f"the stored {part} of {name} does not fit the configured one: {error}") from None

    def _learned_modules(self):
        for name, representation in self.representations.items():
            if representation.encoder.learns_from_data:
                yield name, "encoder", representation.encoder
            yield name, "reducer", representation.reducer
        if self.alignment is not None and self.alignment.learns_from_data:
            yield "alignment", "encoder", self.alignment

    def provenance(self) -> dict:
        """Everything that decides x, as JSON."""
        return self._provenance(lambda part: part.provenance())

    def fingerprint(self) -> str:
        """A hash of `provenance` without library versions: the key of everything computed with this codec."""
        return json_sha256(without_versions(self.provenance()))

    def cache_provenance(self) -> dict:
        """Everything that decides what `precompute` gives, as JSON: no rank or scale that `join` applies."""
        return self._provenance(lambda part: part.stored_provenance())

    def cache_fingerprint(self) -> str:
        """A hash of `cache_provenance` without library versions."""
        return json_sha256(without_versions(self.cache_provenance()))

    def _provenance(self, of) -> dict:
        parts = {
            "autoencoder": of(self.autoencoder),
            "representations": {
                name: {"encoder": r.encoder.provenance(), "reducer": of(r.reducer)}
                for name, r in self.representations.items()
            },
            "learned_sha256": tensors_sha256(self.learned_state()),
        }
        if self.alignment is not None:
            parts["alignment"] = self.alignment.provenance()
        if self.precision != "float32":
            parts["precision"] = self.precision
        return parts


