"""The joint codec: images to the joint state x and back."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.core.artefact import tensors_sha256
from redi.core.channels import Channels
from redi.core.registry import configurable
from redi.models.autoencoders import Autoencoder, autoencoders
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders import Encoder, encoders
from redi.models.reducers import Reducer, reducers

# What stands beside the groups' names in batches, in losses and in the log.
RESERVED = {"images", "labels", "loss", "step", "gradient_norm", "images_per_second", "learning_rate"}


@configurable
class Representation(nn.Module):
    """A frozen encoder and the reducer of its features; one channel group of the joint state.

    Args:
        encoder, reducer: objects of these kinds.
        name: of the channel group; default: the encoder's name.

    Raises:
        ValueError: the wrong kind of object, or a rank above the encoder's width.
    """

    def __init__(self, *, encoder: Encoder, reducer: Reducer, name: str | None = None):
        super().__init__()
        encoders.check(encoder, "Representation.encoder")
        reducers.check(reducer, "Representation.reducer")
        if reducer.rank > encoder.dim:
            raise ValueError(
                f"{type(reducer).__name__}.rank = {reducer.rank} exceeds the encoder width {encoder.dim} "
                f"of {type(encoder).__name__}"
            )
        self.encoder = encoder
        self.reducer = reducer
        self.name = name or encoder.name
        if not self.name.isidentifier() or self.name in RESERVED or hasattr(nn.ModuleDict, self.name):
            raise ValueError(
                f"Representation.name = {self.name!r} cannot name a channel group, for it is no identifier or means "
                f"something else in batches, losses or logs: choose another, such as {encoder.name!r}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> reduced features on the encoder's own grid (N, R, h, w) float32."""
        return self.reducer(self.encoder(images))


@configurable
class JointCodec(nn.Module):
    """Owns the autoencoder, the representations and the `Channels` of the joint state.

    Encoding has two halves, so that a cache can stand between them: `precompute` runs the networks,
    `join` draws the latents, resizes every representation bilinearly to the latent grid (paper, section 3.1)
    and concatenates.
    """

    def __init__(self, *, autoencoder: Autoencoder | None = None, representations: Sequence[Representation] = ()):
        super().__init__()
        self.autoencoder = Pixels() if autoencoder is None else autoencoder
        autoencoders.check(self.autoencoder, "JointCodec.autoencoder")
        for representation in representations:
            if not isinstance(representation, Representation):
                raise ValueError(
                    f"JointCodec.representations takes Representation objects, got {representation!r}. "
                    "Bind, for example: JointCodec.representations = [@Representation()]"
                )
        names = [representation.name for representation in representations]
        if len({"image", *names}) <= len(names):
            raise ValueError(f"every channel group needs a name of its own, got image and {names}: Representation.name")
        self.representations = nn.ModuleDict({r.name: r for r in representations})
        self.channels = Channels(image=self.autoencoder.channels, **{r.name: r.reducer.rank for r in representations})
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "JointCodec":
        return super().train(False)

    def grid(self, image_size: int) -> tuple[int, int]:
        """(H, W) of the joint state for square images of this size."""
        if image_size % self.autoencoder.downsample:
            raise ValueError(
                f"images of {image_size} pixels cannot be encoded by {type(self.autoencoder).__name__}, which divides "
                f"the size by {self.autoencoder.downsample}: change Preprocessing.image_size"
            )
        side = image_size // self.autoencoder.downsample
        return side, side

    @torch.no_grad()
    def precompute(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, S, S) uint8 -> what a cache stores: image moments, and (N, R, h, w) float16 per representation."""
        stored = {name: representation(images).half() for name, representation in self.representations.items()}
        return {"image": self.autoencoder.moments(images), **stored}

    @torch.no_grad()
    def join(self, stored: Mapping[str, Tensor]) -> Tensor:
        """What `precompute` gave -> x (N, C, H, W) float32. May draw from torch's default generator."""
        latents = self.autoencoder.latents(stored["image"])
        groups = {"image": latents}
        for name in self.representations:
            features = stored[name].float()
            shrinks = features.shape[-1] > latents.shape[-1]
            groups[name] = functional.interpolate(
                features, latents.shape[-2:], mode="bilinear", align_corners=False, antialias=shrinks
            )
        return self.channels.join(groups)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) uint8 -> x (N, C, H, W) float32."""
        return self.join(self.precompute(images))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> images (N, 3, S, S) uint8; only the image group is read."""
        return self.autoencoder.decode(self.channels.split(x)["image"])

    @property
    def device(self) -> torch.device:
        """Where its networks are, and so where images must be; the CPU for a codec without networks."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def fitted(self) -> bool:
        """Whether every encoder and reducer is ready."""
        return all(r.encoder.fitted and r.reducer.fitted for r in self.representations.values())

    def learned_state(self) -> dict[str, Tensor]:
        """What was learned from data here and cannot be had elsewhere: all reducers, and encoders trained here."""
        return {
            f"{name}.{part}.{key}": tensor
            for name, part, module in self._learned_modules()
            for key, tensor in module.state_dict().items()
        }

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `learned_state`. Raises ValueError where it was written for another codec."""
        expected = {f"{name}.{part}" for name, part, _ in self._learned_modules()}
        found = {".".join(key.split(".")[:2]) for key in state}
        if expected != found:
            raise ValueError(f"the stored codec has {sorted(found)}, the configured one {sorted(expected)}")
        for name, part, module in self._learned_modules():
            prefix = f"{name}.{part}."
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(f"the stored {part} of {name} does not fit the configured one: {error}") from None

    def _learned_modules(self):
        for name, representation in self.representations.items():
            if representation.encoder.learns_from_data:
                yield name, "encoder", representation.encoder
            yield name, "reducer", representation.reducer

    def provenance(self) -> dict:
        """Everything that decides x, as JSON, with a hash of what was learned."""
        return {
            "autoencoder": self.autoencoder.provenance(),
            "representations": {
                name: {"encoder": r.encoder.provenance(), "reducer": r.reducer.provenance()}
                for name, r in self.representations.items()
            },
            "learned_sha256": tensors_sha256(self.learned_state()),
        }

    def fingerprint(self) -> str:
        """A hash of `provenance`: the key of everything computed with this codec."""
        return hashlib.sha256(json.dumps(self.provenance(), sort_keys=True).encode()).hexdigest()
