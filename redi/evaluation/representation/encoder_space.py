"""Map the joint state back to encoder features, and compare them with the features of the generated image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.resize import restored
from redi.models.codec import JointCodec
from redi.models.reducers import Reducer
from redi.runtime.progress import progress


@torch.no_grad()
def generated_features(codec: JointCodec, x: Tensor) -> dict[str, Tensor]:
    """Map joint states (N, C, H, W) to {representation: features (N, E, h, w)}.

    This inverts the resize (`redi.core.resize.restored`) and the reducer. A reducer without an inverse leaves R
    channels; see `EncoderSpace.inverts`. The first image is decoded and encoded, only to find the encoder's grid.
    """
    image = codec.decode(x[:1].to(codec.device))
    spaces = {name: EncoderSpace(codec, name, image) for name in codec.channels.representations}
    return {name: space.features_of(codec.channels.split(x)[name]) for name, space in spaces.items()}


class EncoderSpace:
    """One representation of a codec on the encoder's grid (h, w) and with its width E. The grid of a vector is (1, 1).

    Args:
        image: any image (1, 3, S, S) uint8 of the right size, to find the encoder's grid.

    Attributes:
        inverts: whether the reducer has an inverse. If not, "features" are the R reduced ones.
        grid, latent_grid: (h, w) and (H, W).
        mean: (E,), subtracted to centre features: the reducer's mean, or its inverse of 0; 0 without an inverse.
    """

    @torch.no_grad()
    def __init__(self, codec: JointCodec, name: str, image: Tensor):
        self.name, self.codec = name, codec.for_image_size(image.shape[-1])
        self.representation = codec.representations[name]
        self.reducer: Reducer = self.representation.reducer
        self.device = codec.device
        self.inverts = type(self.reducer).inverse is not Reducer.inverse
        self.latent_grid = codec.grid(image.shape[-1])
        features = self.representation.features(image.to(self.device))
        self.grid = features.shape[-2], features.shape[-1]
        reduced = torch.zeros_like(self.reducer(features))
        mean = getattr(self.reducer, "mean", None) if self.inverts else reduced[0, :, 0, 0]
        if mean is None or (self.inverts and mean.shape != features.shape[1:2]):
            mean = self.reducer.inverse(reduced)[0].mean(dim=(1, 2))
        self.mean = mean

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (N, 3, S, S) uint8; return features (N, E, h, w) and their joint channels (N, C_m, H, W)."""
        features = self.representation.features(images.to(self.device))
        reduced = self.reducer.finish(self.reducer.project(features).half())  # through float16, as in a cache
        z = self.codec.channels.on_grid(self.name, reduced, self.latent_grid)
        return (features if self.inverts else reduced), z

    @torch.no_grad()
    def features_of(self, z: Tensor) -> Tensor:
        """Map channels of the joint state (N, C_m, H, W) to features (N, E, h, w)."""
        reduced = self._reduced(z.to(self.device).float())
        return self.reducer.inverse(reduced) if self.inverts else reduced

    def _reduced(self, z: Tensor) -> Tensor:
        is_vector = self.representation.vector
        return self.codec.channels.vector(self.name, z)[:, :, None, None] if is_vector else restored(z, self.grid)

    @torch.no_grad()
    def off_grid(self, z: Tensor) -> Tensor:
        """Return the share (N,) of the energy of z (N, C_m, H, W) outside the range of the resize; 0 for a vector."""
        z = z.to(self.device).float()
        rest = z - self.codec.channels.on_grid(self.name, self._reduced(z), self.latent_grid)
        return rest.square().sum(dim=(1, 2, 3)) / z.square().sum(dim=(1, 2, 3)).clamp(min=1e-12)

    def cosine(self, features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosine similarity per token (N, h, w) of centred features, and that of uncentred features."""
        mean = self.mean[:, None, None]
        centred = functional.cosine_similarity(features - mean, others - mean, dim=1)
        return centred, functional.cosine_similarity(features, others, dim=1)


KINDS = ("generated", "ceiling", "floor", "same_class")


@dataclass
class Agreement:
    """Agreement of four kinds of features with the encoder's features of the images.

    "generated": the representation generated with the image. "floor": the one generated with another image.
    "same_class": the one generated with another image of the same class, NaN if there is none. "ceiling": the encoder's
    features of the image after a round trip through the joint state.
    """

    centred: dict[str, Tensor]  # {kind: cosine similarity of centred features per token, (N, h, w)}
    raw: dict[str, Tensor]  # {kind: the same without centring, (N, h, w)}
    pooled: dict[str, Tensor]  # {kind: its features averaged over tokens, (N, E)}


def agreement(
    space: EncoderSpace, images: Tensor, z: Tensor, labels: Tensor, *, seed: int = 0, batch_size: int = 64
) -> Agreement:
    """Compare the encoder's features of images (N, 3, S, S) uint8 with the generated representation z (N, R, H, W).

    A negative label means no class. `seed` determines which other images are compared.
    """
    if len(images) < 2:
        raise ValueError("agreement needs at least two images: its floor uses the features of another image")
    alone = torch.where(labels < 0, -1 - torch.arange(len(labels)), labels)
    others, siblings = derangement(torch.zeros_like(labels), seed), derangement(alone, seed)
    parts: dict[str, list[tuple]] = {kind: [] for kind in KINDS}
    bar = progress(range(0, len(images), batch_size), desc="features of samples", unit="batch")
    for at in (torch.arange(start, min(start + batch_size, len(images))) for start in bar):
        target, round_trip = space.encode(images[at])
        for kind, channels in zip(KINDS, (z[at], round_trip, z[others[at]], z[siblings[at]]), strict=True):
            features = space.features_of(channels)
            values = *space.cosine(features, target), features.mean(dim=(2, 3))
            parts[kind].append(tuple(tensor.cpu() for tensor in values))
    whole = {kind: [torch.cat(column) for column in zip(*rows, strict=True)] for kind, rows in parts.items()}
    for cosines in whole["same_class"][:2]:
        cosines[siblings == torch.arange(len(images))] = torch.nan
    return Agreement(*({kind: columns[i] for kind, columns in whole.items()} for i in range(3)))


def derangement(groups: Tensor, seed: int) -> Tensor:
    """Map each of N positions to its successor on a random ring through its group: (N,) group numbers -> (N,)."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    partners = torch.empty(len(groups), dtype=torch.int64)
    for group in groups.unique():
        ring = order[groups[order] == group]
        partners[ring] = ring.roll(-1)
    return partners
