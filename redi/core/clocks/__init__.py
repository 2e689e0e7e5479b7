"""Clocks: the time of each channel group, as a function of one shared time.

A trajectory from noise to data has a shared time s in [0, 1]. A clock gives every channel group its own time t(s), from
t(0) = 0 (noise) to t(1) = 1 (data), and its slope dt/ds >= 0. Training draws s; the network receives the own times.
`redi.core.processes.clocked.Clocked` composes a clock with a path.
"""

from abc import ABC, abstractmethod

from torch import nn

from redi.core.channels import Channels
from redi.core.registry import Registry, discover


class Clock(ABC):
    """The own time t of each channel group for a shared time s, t(0) = 0 and t(1) = 1, nondecreasing in s.

    A component implements `time` and `slope`, and may override `kinks` and `for_channels`. Public attributes are
    settings and must be JSON values. A clock that is learned sets `module` and overrides `artefacts`.

    Examples:
        >>> class Late(Clock):  # the features start slowly
        ...     def time(self, group, s): return s if group == "image" else s**2
        ...     def slope(self, group, s): return 1.0 if group == "image" else 2 * s
        >>> Late().time("dinov2", 0.5), round(Late().shared_time("dinov2", 0.25), 6)
        (0.25, 0.5)
    """

    # False: every group has t = s, in sampling and unless `independent` in training. The path is then used as it is.
    separate = True
    # True: training draws a time for each group of a sample. In sampling the groups have t = s.
    independent = False

    # What is learned with the network, a part of the objective; None for a fixed clock.
    module: nn.Module | None = None

    def artefacts(self) -> dict[str, dict]:
        """Return {file name: JSON content} of what was learned, which every checkpoint writes to the run folder."""
        return {}

    def portable(self) -> list[str]:
        """Return gin bindings that hold what this clock has read from files, for a configuration without them."""
        return []

    def for_channels(self, channels: Channels) -> "Clock":
        """Return this clock for a joint state. Raises ValueError if a setting names an unknown group."""
        return self

    @abstractmethod
    def time(self, group: str, s):
        """Return t of a group, a float or a tensor like s."""

    @abstractmethod
    def slope(self, group: str, s):
        """Return dt/ds of a group, a float or a tensor like s. It is 0 while the group does not move."""

    def kinks(self) -> tuple[float, ...]:
        """Return the shared times in (0, 1) at which a slope jumps. Samplers split their steps there."""
        return ()

    def shared_time(self, group: str, t: float) -> float:
        """Return the first s at which the time of a group reaches t, by bisection."""
        low, high = 0.0, 1.0
        if self.time(group, low) >= t:
            return low
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.time(group, middle) >= t else (middle, high)
        return high

    def provenance(self) -> dict:
        """Return name and settings as JSON values."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"name": type(self).__name__, **settings}


clocks = Registry("clocks", Clock)
register = clocks.register
discover(__name__, clocks)
