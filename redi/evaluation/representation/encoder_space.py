"""Back from the joint state to the features that an encoder gives, and how well the two agree."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redi.core.resize import resized, restored
from redi.models.codec import JointCodec
from redi.models.reducers import Reducer
from redi.runtime.progress import progress


@torch.no_grad()
def generated_features(codec: JointCodec, x: Tensor) -> dict[str, Tensor]:
    """Joint states (N, C, H, W) -> {representation: (N, E, h, w)}, what the encoder would have to give.

    Undoes the resize (`redi.core.resize.restored`) and the reducer. The images are not looked at, but for the first
    one, which is decoded and encoded to find the encoder's grid. A reducer without an inverse leaves R channels:
    see `EncoderSpace.inverts`.
    """
    image = codec.decode(x[:1].to(codec.device))
    spaces = {name: EncoderSpace(codec, name, image) for name in codec.channels.representations}
    return {name: space.features_of(codec.channels.split(x)[name]) for name, space in spaces.items()}


class EncoderSpace:
    """One representation of a codec on its encoder's own grid and in its width E.

    Args:
        image: (1, 3, S, S) uint8, any of the size at hand: it is encoded to find the encoder's grid.

    Attributes:
        inverts: whether the reducer has an inverse. Where not, "features" here are the R reduced ones.
        grid, latent_grid: (h, w) and (H, W).
        mean: (E,), what centring subtracts: the mean that the reducer was fitted with, or what it makes of zeros;
            zero for reduced features, which reducers centre.
    """

    @torch.no_grad()
    def __init__(self, codec: JointCodec, name: str, image: Tensor):
        self.name = name
        self.encoder, self.reducer = codec.representations[name].encoder, codec.representations[name].reducer
        self.device = codec.device
        self.inverts = type(self.reducer).inverse is not Reducer.inverse
        self.latent_grid = codec.grid(image.shape[-1])
        features = self.encoder(image.to(self.device))
        self.grid = tuple(features.shape[-2:])
        reduced = torch.zeros_like(self.reducer(features))
        self.mean = getattr(self.reducer, "mean", None) if self.inverts else reduced[0, :, 0, 0]
        if self.mean is None or (self.inverts and self.mean.shape != features.shape[1:2]):
            self.mean = self.reducer.inverse(reduced)[0].mean(dim=(1, 2))

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) uint8 -> the encoder's features (N, E, h, w), and the channels of the joint state that a codec
        makes of them, (N, R, H, W).
        """
        features = self.encoder(images.to(self.device))
        reduced = self.reducer.finish(self.reducer.project(features).half())  # through float16, as in a cache
        return (features if self.inverts else reduced), resized(reduced, self.latent_grid)

    @torch.no_grad()
    def features_of(self, z: Tensor) -> Tensor:
        """Channels of the joint state (N, R, H, W) -> features (N, E, h, w)."""
        reduced = restored(z.to(self.device).float(), self.grid)
        return self.reducer.inverse(reduced) if self.inverts else reduced

    @torch.no_grad()
    def off_grid(self, z: Tensor) -> Tensor:
        """(N, R, H, W) -> (N,), the share of the squares of z that no resized map of the encoder's grid holds."""
        z = z.to(self.device).float()
        rest = z - resized(restored(z, self.grid), self.latent_grid)
        return rest.square().sum(dim=(1, 2, 3)) / z.square().sum(dim=(1, 2, 3)).clamp(min=1e-12)

    def cosine(self, features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Per token, (N, h, w): of the centred features, and of the features as they are."""
        mean = self.mean[:, None, None]
        centred = functional.cosine_similarity(features - mean, others - mean, dim=1)
        return centred, functional.cosine_similarity(features, others, dim=1)


KINDS = ("generated", "ceiling", "floor", "same_class")


@dataclass
class Agreement:
    """Cosines with the encoder's features of the images, per token, and features averaged over tokens.

    The kinds: "generated" is the representation drawn with the image; "ceiling" the encoder's own features of it, gone
    through the joint state and back; "floor" the representation drawn with another image; "same_class" that of
    another image of the same class, NaN where there is none.
    """

    centred: dict[str, Tensor]  # kind: (N, h, w)
    raw: dict[str, Tensor]  # kind: (N, h, w)
    pooled: dict[str, Tensor]  # kind: (N, E)


def agreement(
    space: EncoderSpace, images: Tensor, z: Tensor, labels: Tensor, *, seed: int = 0, batch_size: int = 64
) -> Agreement:
    """Compares the encoder's features of images (N, 3, S, S) uint8 with what was drawn with them, z (N, R, H, W).

    Images with a negative label belong to no class; the seed is that of the shuffles.
    """
    if len(images) < 2:
        raise ValueError("agreement needs two images or more, because its floor is measured with another's features")
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
    """(N,) -> (N,) positions: to each its successor on a ring through all of its group, whose order the seed draws."""
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    partners = torch.empty(len(groups), dtype=torch.int64)
    for group in groups.unique():
        ring = order[groups[order] == group]
        partners[ring] = ring.roll(-1)
    return partners
