"""The rules that move a prediction away from the one under another condition."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real

from redi.core.channels import Channels
from redi.guidance import EVERYTHING, Condition, Guidance, Weights, own_times


class Contrast(Guidance):
    """p = p_condition + scale (p - p_condition) in the guided groups. A rule implements `condition`.

    Args:
        scale: guidance scale, or {group: scale}, which also names the guided groups.
        groups: guided groups. Default: those of `scale`, else the image.
        interval: (first, last), in the guided group's own t, or {group: (first, last)}. Groups that the mapping leaves
            out are guided at every t. A group is guided where first <= t <= last.

    Raises ValueError for a scale that is not a finite number, groups that contradict `scale`, and an interval that is
    not sorted, leaves [0, 1] or names a group that is not guided.

    Examples:
        >>> from redi.guidance import ClassifierFree
        >>> rule = ClassifierFree({"image": 2.4, "dinov2": 1.5}, interval={"dinov2": (0.0, 0.8)})
        >>> rule.weight_offsets(Channels(image=4, dinov2=8), {"image": 0.6, "dinov2": 0.9})[EVERYTHING]
        {'image': 1.4}
    """

    def __init__(
        self, scale: float | Mapping[str, float], groups: Sequence[str] | None,
        interval: tuple[float, float] | Mapping[str, tuple[float, float]],
    ):  # fmt: skip
        rule = type(self).__name__
        groups = (groups,) if isinstance(groups, str) else groups
        scales = scale if isinstance(scale, Mapping) else {"": scale}
        if not scales or not all(_is_finite(value) for value in scales.values()):
            raise ValueError(f"{rule}.scale = {scale!r}: must be a finite number or {{group: number}}")
        if isinstance(scale, Mapping):
            if groups is not None and set(groups) != set(scale):
                what = f"{rule}.groups = {tuple(groups)}, but {rule}.scale names {', '.join(scale)}"
                raise ValueError(f"{what}: leave groups out, or give one scale for all")
            scale, groups = dict(scale), tuple(scale)
        self.scale = scale
        self.groups = ("image",) if groups is None else tuple(groups)
        self.interval: tuple[float, float] | dict[str, tuple[float, float]]
        if isinstance(interval, Mapping):
            if unknown := [group for group in interval if group not in self.groups]:
                raise ValueError(f"{rule}.interval names {unknown}: must be among the groups {', '.join(self.groups)}")
            self.interval = {g: _checked(f"{rule}.interval[{g!r}]", value) for g, value in interval.items()}
        else:
            self.interval = _checked(f"{rule}.interval", interval)

    @abstractmethod
    def condition(self, channels: Channels) -> Condition:
        """Return the condition that predictions move away from."""

    def check(self, channels: Channels, num_classes: int) -> None:
        self.check_names("scale" if isinstance(self.scale, Mapping) else "groups", self.groups, tuple(channels))

    def weight_offsets(self, channels: Channels, t: float | Mapping[str, float]) -> Weights:
        times, up, down = own_times(channels, t), {}, {}
        for group in self.groups:
            scale = self.scale[group] if isinstance(self.scale, Mapping) else self.scale
            interval = self.interval
            first, last = interval.get(group, (0.0, 1.0)) if isinstance(interval, Mapping) else interval
            if first <= times[group] <= last:
                up[group], down[group] = scale - 1, 1 - scale
        return {EVERYTHING: up, self.condition(channels): down} if up else {}


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _checked(binding: str, interval: Sequence[float]) -> tuple[float, float]:
    try:
        first, last = map(float, interval)
    except (TypeError, ValueError):
        first, last = 1.0, 0.0
    if not 0 <= first <= last <= 1:
        raise ValueError(f"{binding} = {interval!r}: must be two times, 0 (noise) <= first <= last <= 1 (data)")
    return first, last
