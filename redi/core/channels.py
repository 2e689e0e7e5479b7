"""The channel groups of the joint state.

Letters in the shape comments of the library:
    N batch          C channels of the joint state    H W latent grid
    E encoder width  R reduced channels               h w encoder grid
    P patches        T tokens                         D model width
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from redi.core.inputs import WrongType
from redi.core.resize import resized


class Vector(NamedTuple):
    """A group without a grid: `length` numbers per image, stored in `channels` channels of the joint state.

    Examples:
        >>> Vector.on_grid(768, (16, 16))
        Vector(length=768, channels=3)
    """

    length: int
    channels: int

    @classmethod
    def on_grid(cls, length: int, grid: tuple[int, int]) -> "Vector":
        """Return the vector that takes as few channels of this grid (H, W) as possible."""
        return cls(length, math.ceil(length / math.prod(grid)))


class Channels(Mapping[str, int]):
    """Ordered, named channel groups of the joint state x (N, C, H, W); the image comes first.

    A mapping {group: number of channels}. A group is a map on the grid, or a `Vector`: its channels hold one vector per
    image, row by row, and zeros after it. These zeros, the padding, stay 0 in noise, states, predictions and errors.

    Args:
        sizes: {group: number of channels, or a `Vector`}. The settings of `record` are accepted too.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> channels.total, channels.representations, channels.slice("dinov2")
        (12, ('dinov2',), slice(4, 12, None))
        >>> x = torch.randn(2, 12, 32, 32)
        >>> torch.equal(channels.join(channels.split(x)), x)
        True
        >>> channels.mask(x, torch.tensor([True, False]))[:, 4:].abs().amax(dim=(1, 2, 3)) > 0
        tensor([False,  True])

        A vector of 5 numbers on a grid of 2 x 2 takes two channels.

        >>> channels = Channels(image=1, dinov2_class=Vector.on_grid(5, (2, 2)))
        >>> channels.total, channels.vectors
        (3, {'dinov2_class': 5})
        >>> stored = channels.stored("dinov2_class", torch.ones(1, 5), (2, 2))
        >>> stored.flatten().tolist(), torch.equal(channels.vector("dinov2_class", stored), torch.ones(1, 5))
        ([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], True)
    """

    def __init__(self, /, **sizes: Any):
        if next(iter(sizes), None) != "image":
            raise ValueError(f"channel groups {list(sizes)}: the first must be 'image'")
        vectors = {name: Vector(**size) for name, size in sizes.items() if isinstance(size, Mapping)}
        vectors |= {name: size for name, size in sizes.items() if isinstance(size, Vector)}
        self.vectors = {name: vector.length for name, vector in vectors.items()}  # {group: numbers per image}
        self._sizes = {name: vectors[name].channels if name in vectors else size for name, size in sizes.items()}
        if bad := {name: size for name, size in (self._sizes | self.vectors).items() if size < 1}:
            raise ValueError(f"channel groups {bad}: every size must be at least 1")
        if "image" in vectors:
            raise ValueError("channel group 'image' is a Vector: must be a map on the grid")

    @property
    def total(self) -> int:
        """C, the channels of the joint state."""
        return sum(self._sizes.values())

    @property
    def representations(self) -> tuple[str, ...]:
        """The groups after the image."""
        return tuple(self._sizes)[1:]

    @property
    def maps(self) -> tuple[str, ...]:
        """The groups on the grid: the image, and representations that are not vectors."""
        return tuple(name for name in self._sizes if name not in self.vectors)

    def slice(self, name: str) -> slice:
        """Return the slice of a group along the channel dimension."""
        if name not in self._sizes:
            raise ValueError(f"no channel group {name!r}: must be one of {', '.join(self._sizes)}")
        names = list(self._sizes)
        start = sum(self._sizes[group] for group in names[: names.index(name)])
        return slice(start, start + self._sizes[name])

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """Split (N, C, H, W) into views {"image": (N, C_image, H, W), "<representation>": (N, R, H, W), ...}."""
        self._check(x)
        return dict(zip(self._sizes, x.split(list(self._sizes.values()), dim=1), strict=True))

    def unpadded(self, x: Tensor) -> dict[str, Tensor]:
        """Split (N, C, H, W) like `split`, but with a vector as (N, length, 1, 1), which leaves out its padding."""
        parts = self.split(x)
        return parts | {name: self.vector(name, parts[name])[:, :, None, None] for name in self.vectors}

    def join(self, groups: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the groups, the inverse of `split`."""
        x = torch.cat([groups[name] for name in self._sizes], dim=1)
        self._check(x)
        return x

    def means(self, x: Tensor) -> dict[str, Tensor]:
        """Return {group: (N,)}, the mean of (N, C, H, W) over its channels and positions, without padding."""
        return {name: part.mean(dim=(1, 2, 3)) for name, part in self.unpadded(x).items()}

    def vector(self, name: str, part: Tensor) -> Tensor:
        """Return the vectors (N, length) that the channels of a group, (N, C_m, H, W), hold."""
        return part.flatten(1)[:, : self.vectors[name]]

    def stored(self, name: str, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the channels (N, C_m, H, W) that hold vectors (N, length): the inverse of `vector`.

        Raises ValueError for vectors of another length, or a grid (H, W) on which these channels are too small.
        """
        (height, width), length = grid, self.vectors[name]
        padding = self[name] * height * width - length
        if vectors.shape[1] != length or padding < 0:
            what = f"vectors {tuple(vectors.shape)} of {name} in {self[name]} channels of {height} x {width}"
            allowed = f"must be (N, {length}), on a grid that holds {length} numbers in these channels"
            raise ValueError(f"{what}: {allowed}; use images of the size that the codec was prepared for")
        values = torch.nn.functional.pad(vectors, (0, padding))
        return rearrange(values, "n (c h w) -> n c h w", h=height, w=width)

    def on_grid(self, name: str, reduced: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the channels (N, C_m, H, W) of a group from reduced features (N, R, h, w), or (N, R, 1, 1)."""
        return self.stored(name, reduced[:, :, 0, 0], grid) if name in self.vectors else resized(reduced, grid)

    def expand(self, times: Tensor) -> Tensor:
        """Reshape times for broadcasting: (N,) -> (N, 1, 1, 1); (N, groups) -> (N, C, 1, 1)."""
        if times.ndim == 1:
            return times[:, None, None, None]
        columns = zip(times.split(1, dim=1), self._sizes.values(), strict=True)
        return torch.cat([t.expand(-1, size) for t, size in columns], dim=1)[:, :, None, None]

    def trim(self, x: Tensor) -> Tensor:
        """Set the padding of vectors in (N, C, H, W) to 0. Without vectors, return x itself."""
        if not self.vectors:
            return x
        parts, grid = self.split(x), (x.shape[2], x.shape[3])
        return self.join(parts | {n: self.stored(n, self.vector(n, parts[n]), grid) for n in self.vectors})

    def mask(self, x: Tensor, drop: Tensor, groups: Iterable[str] | None = None) -> Tensor:
        """Zero the named groups (default: all representations) of the samples where drop, (N,) bool, is True.

        This is z_t := 0 (paper, section 3.5), for representation dropout and for Representation Guidance.
        """
        self._check(x)
        gate = x.new_ones(len(x), self.total, 1, 1)
        for name in self.representations if groups is None else groups:
            gate[:, self.slice(name)] = (~drop).to(x.dtype)[:, None, None, None]
        return x * gate

    def per_channel(self, values: Mapping[str, float], like: Tensor) -> Tensor:
        """Repeat the value of each group over its channels: {group: value} -> (1, C, 1, 1)."""
        # Filled on the device: copying a list to the device would make the host wait.
        return torch.cat([like.new_full((1, size, 1, 1), values[name]) for name, size in self._sizes.items()], dim=1)

    def record(self) -> dict[str, Any]:
        """Return {group: number of channels, or the settings of its `Vector`} as JSON, for `Channels(**record)`."""
        vectors = {name: Vector(length, self[name])._asdict() for name, length in self.vectors.items()}
        return self._sizes | vectors

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise WrongType(f"joint state of dtype {x.dtype}: must be floating-point; use JointCodec.encode for images")
        if x.ndim != 4 or x.shape[1] != self.total:
            raise ValueError(f"joint state of shape {tuple(x.shape)}: must be (N, {self.total}, H, W) for {self}")

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]

    def __iter__(self):
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        sizes = self._sizes | {name: Vector(length, self[name]) for name, length in self.vectors.items()}
        return f"Channels({', '.join(f'{name}={size}' for name, size in sizes.items())})"
