"""A time shift per channel group."""

import math
from collections.abc import Mapping

from redi.core.channels import Channels
from redi.core.clocks import Clock, register


@register
class Shift(Clock):
    """The time t(s) = s / (s + shift (1 - s)) for each channel group.

    With shift < 1 a group has less noise at the same s and is denoised before the image; with shift > 1, after it. On
    the linear path the shift multiplies the signal-to-noise ratio by 1 / shift^2 (Esser et al., arXiv 2403.03206, Eq.
    23, used there for resolutions).

    Args:
        shift: {group: shift}. Groups that are not named have shift 1.

    Examples:
        >>> clock = Shift(shift={"dinov2": 0.5})
        >>> clock.time("image", 0.5), round(clock.time("dinov2", 0.5), 3)
        (0.5, 0.667)
    """

    def __init__(self, *, shift: Mapping[str, float] | None = None):
        self.shift = dict(shift or {})
        if bad := {name: value for name, value in self.shift.items() if not 0 < value < math.inf}:
            raise ValueError(f"Shift.shift = {bad}: every shift must be finite and greater than 0")

    def for_channels(self, channels: Channels) -> "Shift":
        if unknown := [name for name in self.shift if name not in channels]:
            raise ValueError(f"Shift.shift names {unknown}: must be among {', '.join(channels)}")
        return self

    def time(self, group: str, s):
        return shifted(s, self.shift.get(group, 1.0))

    def slope(self, group: str, s):
        shift = self.shift.get(group, 1.0)
        return shift / (s + shift * (1 - s)) ** 2


def shifted(t, shift: float):
    """Return t / (t + shift (1 - t)) for a float or tensor t in [0, 1]: with shift > 1 earlier times, with more noise.

    Examples:
        >>> shifted(0.5, shift=3.0)
        0.25
    """
    return t / (t + shift * (1 - t))
