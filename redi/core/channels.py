"""Which channels of the joint state belong to which stream.

Letters used in every shape comment of the library:
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

    >>> channels = Channels(image=4, dinov2=8)
    >>> channels.total, channels.representations, channels.slice("dinov2")
    (12, ('dinov2',), slice(4, 12, None))
    """

    def __init__(self, /, **sizes: int):
        if next(iter(sizes), None) != "image":
            raise ValueError(f"the first channel group must be 'image', got {list(sizes)}")
        if bad := {name: size for name, size in sizes.items() if size < 1}:
            raise ValueError(f"every channel group needs at least one channel, got {bad}")
        self._sizes = dict(sizes)

    @property
    def total(self) -> int:
        """C, the channels of the joint state."""
        return sum(self._sizes.values())

    @property
    def representations(self) -> tuple[str, ...]:
        return tuple(self._sizes)[1:]

    def slice(self, name: str) -> slice:
        """Where a group lies along the channel dimension."""
        if name not in self._sizes:
            raise ValueError(f"no channel group {name!r}: the joint state has {', '.join(self._sizes)}")
        names = list(self._sizes)
        start = sum(self._sizes[group] for group in names[: names.index(name)])
        return slice(start, start + self._sizes[name])

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> {"image": (N, C_image, H, W), "<representation>": (N, R, H, W), ...}, as views."""
        self._check(x)
        return dict(zip(self._sizes, x.split(list(self._sizes.values()), dim=1), strict=True))

    def join(self, groups: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        x = torch.cat([groups[name] for name in self._sizes], dim=1)
        self._check(x)
        return x

    def mask(self, x: Tensor, drop: Tensor, groups: Iterable[str] | None = None) -> Tensor:
        """Zero the named groups (default: every representation) of the samples in drop (N,), a bool tensor.

        Training (representation dropout) and sampling (Representation Guidance, paper section 3.5: z_t := 0) use it.
        """
        self._check(x)
        gate = x.new_ones(len(x), self.total, 1, 1)
        for name in self.representations if groups is None else groups:
            gate[:, self.slice(name)] = (~drop).to(x.dtype)[:, None, None, None]
        return x * gate

    def per_channel(self, values: Mapping[str, float], like: Tensor) -> Tensor:
        """{group: value} -> (1, C, 1, 1), each group's value repeated over its channels."""
        # Filled on the device: a list would have to be copied there, for which the host waits.
        return torch.cat([like.new_full((1, size, 1, 1), values[name]) for name, size in self._sizes.items()], dim=1)

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise WrongType(f"expected a joint state, got {x.dtype} {tuple(x.shape)}: JointCodec.encode makes it")
        if x.ndim != 4 or x.shape[1] != self.total:
            raise ValueError(f"expected a joint state (N, {self.total}, H, W) of {self}, got {tuple(x.shape)}")

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]

    def __iter__(self):
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __repr__(self) -> str:
        return f"Channels({', '.join(f'{name}={size}' for name, size in self._sizes.items())})"
