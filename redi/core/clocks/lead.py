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

    A group at t = 0 or t = 1 does not move in sampling. In training its loss stays, as in SFD: the network predicts it
    from pure noise or from clean data.

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
            raise ValueError(f"Lead.groups = {self.groups}: must be None, because Lead.offset names its groups")
        for value in self.offset.values() if isinstance(self.offset, dict) else [self.offset]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
                raise ValueError(f"Lead.offset = {offset!r}: every offset must be a number in [-1, 1]")
        self._moves: dict[str, tuple[float, float]] = {}  # {group: (s of its start, s of its end)}

    def for_channels(self, channels: Channels) -> "Lead":
        if not channels.representations:
            raise ValueError("clocks.Lead needs a representation, but the codec has only the image: bind clocks.Shared")
        named, binding = (self.offset, "offset") if isinstance(self.offset, dict) else (self.groups, "groups")
        names = channels.representations if named is None else tuple(named)
        if not names or any(name not in channels.representations for name in names):
            known = ", ".join(channels.representations)
            image = "; with a negative offset the image leads" if "image" in names else ""
            raise ValueError(f"Lead.{binding} = {named}: must name representations of the codec ({known}){image}")
        offsets = self.offset if isinstance(self.offset, dict) else dict.fromkeys(names, self.offset)
        offsets = {name: offsets.get(name, 0.0) for name in channels}
        first, bound = max(offsets.values()), copy.copy(self)
        duration = 1 + first - min(offsets.values())  # in units of u
        bound._moves = {n: ((first - d) / duration, (1 + first - d) / duration) for n, d in offsets.items()}
        return bound

    def time(self, group: str, s):
        start, end = self._move(group)
        t = (s - start) / (end - start)
        return t.clamp(0, 1) if isinstance(t, Tensor) else min(max(t, 0.0), 1.0)

    def slope(self, group: str, s):
        start, end = self._move(group)
        moving = (s >= start) & (s <= end)
        return (moving.to(s.dtype) if isinstance(s, Tensor) else moving) / (end - start)

    def kinks(self) -> tuple[float, ...]:
        ends = sorted(s for move in self._moves.values() for s in move if 0 < s < 1)
        return tuple({round(s, 9): s for s in ends}.values())  # equal ones may differ by rounding

    def _move(self, group: str) -> tuple[float, float]:
        if not self._moves:
            raise ValueError("Lead does not know the channel groups yet: call for_channels(channels) first")
        return self._moves[group]
