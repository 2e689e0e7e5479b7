"""The rules that move a prediction away from the one under another condition."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real

from redi.core.channels import Channels
from redi.guidance import EVERYTHING, Condition, Guidance, Weights, own_times

Interval = tuple[float, float]


class Contrast(Guidance):
    """p = p_condition + scale (p - p_condition) in the guided groups. A rule implements `condition`.

    Args:
        scale: guidance scale, or {group: scale}, which names the guided groups.
        groups: guided groups. Default: those of `scale`, else `default_groups`.
        interval: range of the guided group's own t, or {group: range}; groups that it leaves out have (0, 1).

    Raises ValueError for a scale that is not a finite number, groups other than those of `scale`, and a range that is
    not sorted, leaves [0, 1] or is that of a group that is not guided.

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> rule = ClassifierFree({"image": 2.4, "dinov2": 1.5}, interval={"dinov2": (0.0, 0.8)})
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), {"image": 0.6, "dinov2": 0.9})[EVERYTHING]
        {'image': 1.4}
    """

    default_groups: tuple[str, ...] | None = ("image",)  # None: all

    def __init__(
        self, scale: float | Mapping[str, float], groups: Sequence[str] | None,
        interval: Interval | Mapping[str, Interval],
    ):  # fmt: skip
        rule = type(self).__name__
        scales = dict(scale) if isinstance(scale, Mapping) else {"all": scale}
        numbers = [s for s in scales.values() if isinstance(s, Real) and not isinstance(s, bool) and math.isfinite(s)]
        if not scales or len(numbers) < len(scales):
            raise ValueError(f"{rule}.scale = {scale!r}: must be a finite number or {{group: number}}")
        groups = (groups,) if isinstance(groups, str) else groups
        if isinstance(scale, Mapping):
            if groups is not None and set(groups) != set(scales):
                what = f"{rule}.groups = {tuple(groups)}, but {rule}.scale names {', '.join(scales)}"
                raise ValueError(f"{what}: leave groups out, or give one scale for all")
            scale, groups = scales, tuple(scales)
        self.scale = scale
        self.groups = self.default_groups if groups is None else tuple(groups)
        self.interval: Interval | dict[str, Interval]
        if isinstance(interval, Mapping):
            self.interval = {name: _checked(f"{rule}.interval[{name!r}]", one) for name, one in interval.items()}
            self.check_names("interval", tuple(interval), self.groups or tuple(interval))
        else:
            self.interval = _checked(f"{rule}.interval", interval)

    @abstractmethod
    def condition(self, channels: Channels) -> Condition:
        """Return the condition that predictions move away from."""

    def check(self, channels: Channels, num_classes: int) -> None:
        self.check_names("scale" if isinstance(self.scale, dict) else "groups", self.groups or (), tuple(channels))
        self.check_names("interval", tuple(self.interval) if isinstance(self.interval, dict) else (), tuple(channels))

    def weight_offsets(self, channels: Channels, t: float | Mapping[str, float]) -> Weights:
        times, up, down = own_times(channels, t), {}, {}
        for group in channels if self.groups is None else self.groups:
            scale = self.scale[group] if isinstance(self.scale, dict) else self.scale
            first, last = self.interval.get(group, (0, 1)) if isinstance(self.interval, dict) else self.interval
            if first <= times[group] <= last:
                up[group], down[group] = scale - 1, 1 - scale
        return {EVERYTHING: up, self.condition(channels): down} if up else {}


def _checked(binding: str, interval: Sequence[float]) -> Interval:
    try:
        first, last = map(float, interval)
    except (TypeError, ValueError):
        first, last = 1.0, 0.0
    if not 0 <= first <= last <= 1:
        raise ValueError(f"{binding} = {interval!r}: must be two times, 0 (noise) <= first <= last <= 1 (data)")
    return first, last
