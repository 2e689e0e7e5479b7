"""A time shift per channel group."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from redi.core.channels import Channels
from redi.core.processes import Process, per_sample, processes, register
from redi.core.processes.flow_matching import FlowMatching


@register
class Shifted(Process):
    """A continuous process with a separate time s(t) = t / (t + shift (1 - t)) for each channel group.

    With shift < 1 a group has less noise at the same t and is denoised before the image; with shift > 1, after it.
    Shift 1 is the shared t of the paper; other values are an extension. On the linear path the shift multiplies the
    signal-to-noise ratio by 1 / shift^2 (Esser et al., arXiv 2403.03206, Eq. 23, used there for resolutions).

    Args:
        process: the path. Default: FlowMatching.
        shift: {group: shift}. Groups that are not named have shift 1.

    Examples:
        >>> process = Shifted(shift={"dinov2": 0.5}).for_channels(Channels(image=1, dinov2=2))
        >>> ratio = (process.alpha(0.5) / process.sigma(0.5)).flatten()
        >>> [round(value, 3) for value in ratio.tolist()]  # 1 on the image, 1 / shift on dinov2
        [1.0, 2.0, 2.0]
    """

    def __init__(self, process: Process | None = None, *, shift: Mapping[str, float] | None = None):
        self.process = FlowMatching() if process is None else process
        processes.check(self.process, "Shifted.process")
        if self.process.num_timesteps is not None:
            what = f"Shifted.process = {type(self.process).__name__} has discrete timesteps"
            raise ValueError(f"{what}: must be a continuous process, for example processes.FlowMatching()")
        self.shift = dict(shift or {})
        if bad := {name: value for name, value in self.shift.items() if not value > 0}:
            raise ValueError(f"Shifted.shift = {bad}: every shift must be greater than 0")
        self._channels: Channels | None = None
        self._device: torch.device | str = "cpu"

    def for_channels(self, channels: Channels, device: torch.device | str = "cpu") -> "Shifted":
        if unknown := [name for name in self.shift if name not in channels]:
            raise ValueError(f"Shifted.shift names {unknown}: must be among {', '.join(channels)}")
        bound = copy.copy(self)
        bound.process, bound._channels, bound._device = self.process.for_channels(channels, device), channels, device
        return bound

    def group_time(self, t):
        """Return s(t), (1, C, 1, 1) or (N, C, 1, 1), for t as a float, (N,), (N, 1, 1, 1) or (N, C, 1, 1)."""
        t = per_sample(t)
        return t / (t + self._per_channel(t) * (1 - t)) if self.shift else t

    def _slope(self, t):
        """Return ds/dt."""
        t, shift = per_sample(t), self._per_channel(per_sample(t))
        return shift / (t + shift * (1 - t)) ** 2

    def _per_channel(self, t):
        if not self.shift:
            return 1.0
        channels = self._bound_channels()
        like = t if isinstance(t, Tensor) else torch.empty(0, device=self._device)
        return channels.per_channel({name: self.shift.get(name, 1.0) for name in channels}, like)

    def _bound_channels(self) -> Channels:
        if self._channels is None:
            raise ValueError("Shifted does not know the channel groups yet: call for_channels(channels) first")
        return self._channels

    def t_range(self) -> tuple[float, float]:
        first, last = self.process.t_range()
        # The inverse of s(t) per group: within this range every group stays away from the poles.
        ends = [[value * s / (1 - s + value * s) for value in (1.0, *self.shift.values())] for s in (first, last)]
        return max(ends[0]), min(ends[1])

    def model_time(self, t: Tensor) -> Tensor:
        """Return the time input of the network: (N,) -> (N, groups)."""
        if not self.shift:
            return self.process.model_time(t)
        shift = torch.cat([t.new_full((1,), self.shift.get(name, 1.0)) for name in self._bound_channels()])
        times = t if t.ndim == 2 else t[:, None]
        return self.process.model_time(times / (times + shift * (1 - times)))

    def alpha(self, t):
        return self.process.alpha(self.group_time(t))

    def sigma(self, t):
        return self.process.sigma(self.group_time(t))

    def d_alpha(self, t):
        """Return d alpha / dt = s'(t) alpha'(s)."""
        return self._slope(t) * self.process.d_alpha(self.group_time(t))

    def d_sigma(self, t):
        """Return d sigma / dt = s'(t) sigma'(s)."""
        return self._slope(t) * self.process.d_sigma(self.group_time(t))

    def target(self, x: Tensor, noise: Tensor, t) -> Tensor:
        return self.process.target(x, noise, self.group_time(t))

    def error(self, prediction: Tensor, x: Tensor, noise: Tensor, t) -> Tensor:
        return self.process.error(prediction, x, noise, self.group_time(t))

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self._slope(t) * self.process.velocity(prediction, x_t, self.group_time(t))

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self.process.clean(prediction, x_t, self.group_time(t))

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return self.process.noise(prediction, x_t, self.group_time(t))

    def provenance(self) -> dict:
        return {"name": "Shifted", "process": self.process.provenance(), "shift": self.shift}
