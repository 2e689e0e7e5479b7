"""A path with a clock: every channel group has its own time."""

import copy

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.clocks import Clock, clocks
from redi.core.processes import Process, per_sample, processes

ROUNDING = 1e-12  # own times that differ by less are equal


class Clocked(Process):
    """A continuous path in which every channel group follows its own time t(s).

    Its time argument is the shared time s of the clock. `velocity`, `d_alpha` and `d_sigma` are derivatives by s, and 0
    for a group that does not move. Where the path has a pole, it is evaluated at the nearest time of its `t_range`.
    `JointObjective` composes its `process` and `clock` in this way.

    Args:
        process: the path, a continuous process.
        clock: the clock, for example `redi.core.clocks.Lead`.

    Examples:
        >>> from redi.core.clocks import Shift
        >>> from redi.core.processes import FlowMatching
        >>> process = Clocked(FlowMatching(), Shift(shift={"dinov2": 0.5})).for_channels(Channels(image=1, dinov2=2))
        >>> ratio = (process.alpha(0.5) / process.sigma(0.5)).flatten()
        >>> [round(value, 3) for value in ratio.tolist()]  # 1 on the image, 1 / shift on dinov2
        [1.0, 2.0, 2.0]
    """

    def __init__(self, process: Process, clock: Clock):
        processes.check(process, "JointObjective.process")
        clocks.check(clock, "JointObjective.clock")
        what = f"JointObjective.clock = {type(clock).__name__} with JointObjective.process = {type(process).__name__}"
        if process.num_timesteps is not None:
            allowed = "must be a continuous process, for example processes.FlowMatching(), or bind clocks.Shared"
            raise ValueError(f"{what}, which has discrete timesteps: {allowed}")
        if isinstance(process, Clocked):
            raise ValueError(f"{what}, which has a clock of its own: bind its path as the process, and one clock")
        self.process, self.clock = process, clock
        self._channels: Channels | None = None
        self._device: torch.device | str = "cpu"
        self._step: tuple[float, float] | None = None  # see `between`

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "Clocked":
        bound = copy.copy(self)
        bound.process, bound.clock = self.process.for_channels(channels, device), self.clock.for_channels(channels)
        bound._channels, bound._device = channels, device
        return bound

    @property
    def channels(self) -> Channels:
        """The channel groups. Raises ValueError before `for_channels`."""
        if self._channels is None:
            raise ValueError("Clocked does not know the channel groups yet: call for_channels(channels) first")
        return self._channels

    def own_time(self, s):
        """Return t(s), (1, C, 1, 1) or (N, C, 1, 1), for s as a float, (N,), (N, 1, 1, 1) or (N, C, 1, 1)."""
        return self._per_channel(self._time, s)

    def group_times(self, channels: Channels, t: float) -> dict[str, float]:
        return {name: self._time(name, t) for name in channels}

    def slope(self, t):
        return self._per_channel(self._slope, t)

    def between(self, t: float, t_next: float) -> "Clocked":
        bound = copy.copy(self)
        bound._step = (t, t_next)
        return bound

    def kinks(self) -> tuple[float, ...]:
        first, last = self.t_range()
        return tuple(s for s in self.clock.kinks() if first < s < last)

    def t_range(self) -> tuple[float, float]:
        first, last = self.process.t_range()
        if (first, last) == (0, 1):
            return 0.0, 1.0
        starts, stops = ([self.clock.shared_time(name, t) for name in self.channels] for t in (first, last))
        return min(starts), max(stops)

    def model_time(self, t: Tensor) -> Tensor:
        """Return the time input of the network: (N,) or (N, groups) -> (N, groups)."""
        columns = t.split(1, dim=1) if t.ndim == 2 else [t[:, None]] * len(self.channels)
        times = [self._time(name, column) for name, column in zip(self.channels, columns, strict=True)]
        return self.process.model_time(torch.cat(times, dim=1))

    def _time(self, name: str, s):
        """Return the own time of a group, within the range of the path except at the ends of the trajectory."""
        t, (first, last) = self.clock.time(name, s), self.process.t_range()
        if isinstance(t, Tensor):
            return t.clamp(first, last)
        return t if s in (0, 1) else min(max(t, first), last)

    def _slope(self, name: str, s):
        if self._step is not None:
            start, stop = self._step
            elapsed = self.clock.time(name, stop) - self.clock.time(name, start)
            slope = elapsed / (stop - start) if elapsed > ROUNDING else 0.0
        else:
            slope = self.clock.slope(name, s)
        return slope + torch.zeros_like(s) if isinstance(s, Tensor) else slope

    def _per_channel(self, function, s):
        """Return function(group, s) for every channel."""
        s, channels = per_sample(s), self.channels
        if not isinstance(s, Tensor):
            like = torch.empty(0, device=self._device)
            return channels.per_channel({name: function(name, s) for name in channels}, like)
        parts = channels.split(s) if s.shape[1] == channels.total else dict.fromkeys(channels, s)
        return torch.cat([function(name, parts[name]).expand(-1, size, -1, -1) for name, size in channels.items()], 1)

    def alpha(self, t):
        return self.process.alpha(self.own_time(t))

    def sigma(self, t):
        return self.process.sigma(self.own_time(t))

    def d_alpha(self, t):
        """Return d alpha / ds = t'(s) alpha'(t)."""
        return self.slope(t) * self.process.d_alpha(self.own_time(t))

    def d_sigma(self, t):
        """Return d sigma / ds = t'(s) sigma'(t)."""
        return self.slope(t) * self.process.d_sigma(self.own_time(t))

    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        return self.process.target(x, noise, self.own_time(t))

    def error(self, prediction: Tensor, x: Tensor, noise: Tensor, t) -> Tensor:
        return self.process.error(prediction, x, noise, self.own_time(t))

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self.slope(t) * self.process.velocity(prediction, x_t, self.own_time(t))

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self.process.clean(prediction, x_t, self.own_time(t))

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self.process.noise(prediction, x_t, self.own_time(t))

    def provenance(self) -> dict:
        return {"name": "Clocked", "process": self.process.provenance(), "clock": self.clock.provenance()}
