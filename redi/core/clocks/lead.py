"""Some channel groups run ahead of the others by a constant offset."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor

from redi.core.channels import Channels
from redi.core.clocks import Clock, register


@register
class Lead(Clock):
    """The representations run ahead of the image: semantics first (SFD, arXiv 2512.04926).

    Every group follows t = clamp(u + offset, 0, 1), where u runs at constant speed from the start of the first group to
    the end of the last one; the offset of the image is 0. For one representation with offset d this is

        t_image = max((1 + d) s - d, 0),    t_representation = min((1 + d) s, 1).

    A group at t = 0 or t = 1 does not move in sampling. In training its loss stays (as in SFD): it then predicts from
    pure noise, or the noise that is left in clean data.

    Args:
        offset: how far a group is ahead of the image, in [-1, 1], one number for all groups or {group: offset}. With a
            negative offset the image leads. SFD reports an FID of 5.24 for 0, 3.03 for 0.3 and 5.41 for 1.
        groups: the groups that the number `offset` applies to. Default: all representations.

    Examples:
        >>> clock = Lead(offset=0.3).for_channels(Channels(image=4, dinov2=8))
        >>> [round(clock.time("image", s), 2) for s in (0.0, 0.2, 0.5, 1.0)]
        [0.0, 0.0, 0.35, 1.0]
        >>> [round(clock.time("dinov2", s), 2) for s in (0.0, 0.2, 0.5, 1.0)]
        [0.0, 0.26, 0.65, 1.0]
        >>> [round(s, 4) for s in clock.kinks()]  # the image starts, the features are done
        [0.2308, 0.7692]
    """

    def __init__(self, offset: float | Mapping[str, float] = 0.3, *, groups: Sequence[str] | None = None):
        groups = (groups,) if isinstance(groups, str) else groups
        self.offset = dict(offset) if isinstance(offset, Mapping) else offset
        self.groups = None if groups is None else tuple(groups)
        if isinstance(self.offset, dict) and self.groups is not None:
            raise ValueError(f"Lead.groups = {self.groups}: must be None if Lead.offset names its groups")
        for value in self.offset.values() if isinstance(self.offset, dict) else [self.offset]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
                raise ValueError(f"Lead.offset = {offset!r}: every offset must be a number in [-1, 1]")
        self._offsets: dict[str, float] = {}

    def for_channels(self, channels: Channels) -> "Lead":
        names = tuple(self.offset) if isinstance(self.offset, dict) else self.groups
        names = channels.representations if names is None else names
        if not names:
            raise ValueError("clocks.Lead needs a representation, but the codec has only the image: bind Shared")
        if unknown := [name for name in names if name not in channels.representations]:
            known = ", ".join(channels.representations) or "none: the codec has only the image"
            raise ValueError(f"Lead names the groups {unknown}: must be representations of the codec ({known})")
        bound = copy.copy(self)
        offsets = self.offset if isinstance(self.offset, dict) else dict.fromkeys(names, self.offset)
        bound._offsets = {name: float(offsets.get(name, 0.0)) for name in channels}
        return bound

    def time(self, group: str, s):
        t = self._unclamped(group, s)
        return t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)

    def slope(self, group: str, s):
        t = self._unclamped(group, s)
        moving = (t >= 0) & (t <= 1) if isinstance(t, Tensor) else 0 <= t <= 1
        return moving * (self._last - self._first)

    def kinks(self) -> tuple[float, ...]:
        ends = {
            (end - offset - self._first) / (self._last - self._first)
            for offset in self._offsets.values() for end in (0, 1)
        }  # fmt: skip
        return tuple(sorted(s for s in ends if 0 < s < 1))

    @property
    def _first(self) -> float:
        """The u of the docstring at s = 0."""
        return -max(self._offsets.values())

    @property
    def _last(self) -> float:
        return 1 - min(self._offsets.values())

    def _unclamped(self, group: str, s):
        if not self._offsets:
            raise ValueError("Lead does not know the channel groups yet: call for_channels(channels) first")
        return self._first + (self._last - self._first) * s + self._offsets[group]
