"""The channel groups of the joint state.

Letters in the shape comments of the library:
    N batch          C channels of the joint state    H W latent grid
    E encoder width  R reduced channels               h w encoder grid
    P patches        T tokens                         D model width
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from redi.core.inputs import WrongType


class Channels(Mapping[str, int]):
    """Ordered, named channel groups of the joint state x (N, C, H, W); the image comes first.

    A mapping {group: number of channels}.

    Examples:
        >>> channels = Channels(image=4, dinov2=8)
        >>> channels.total, channels.representations, channels.slice("dinov2")
        (12, ('dinov2',), slice(4, 12, None))
        >>> x = torch.randn(2, 12, 32, 32)
        >>> torch.equal(channels.join(channels.split(x)), x)
        True
        >>> channels.mask(x, torch.tensor([True, False]))[:, 4:].abs().amax(dim=(1, 2, 3)) > 0
        tensor([False,  True])
    """

    def __init__(self, /, **sizes: int):
        if next(iter(sizes), None) != "image":
            raise ValueError(f"channel groups {list(sizes)}: the first must be 'image'")
        if bad := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"channel groups {bad}: every size must be at least 1")
        self._sizes = dict(sizes)

    @property
    def total(self) -> int:
        """C, the channels of the joint state."""
        return sum(self._sizes.values())

    @property
    def representations(self) -> tuple[str, ...]:
        """The groups after the image."""
        return tuple(self._sizes)[1:]

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

    def join(self, groups: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the groups, the inverse of `split`."""
        x = torch.cat([groups[name] for name in self._sizes], dim=1)
        self._check(x)
        return x

    def means(self, x: Tensor) -> dict[str, Tensor]:
        """Return {group: (N,)}, the mean of (N, C, H, W) over its channels and positions."""
        return {name: part.mean(dim=(1, 2, 3)) for name, part in self.split(x).items()}

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
        return f"Channels({', '.join(f'{name}={size}' for name, size in self._sizes.items())})"
