"""Time distributions: how training draws its times."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from redi.core.clocks.shift import shifted
from redi.core.processes import Process
from redi.core.registry import Registry, discover

Shift = float | Literal["dimension", "resolution"]


class TimeDistribution(ABC):
    """The distribution of the training times in [0, 1]: of the shared time, or of every time of clocks.Independent.

    A component implements `draw`, and may override `check` and `density`. Public attributes are settings and must be
    JSON values.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> class Noisy(TimeDistribution):
        ...     def draw(self, process, shape, device, state):
        ...         return torch.rand(shape, device=device) / 2
        >>> bool((Noisy().draw(FlowMatching(), (100,), "cpu", (4, 8, 8)) < 0.5).all())
        True
    """

    def check(self, process: Process) -> None:  # noqa: B027  # optional
        """Raise ValueError if the times of this distribution do not suit the process, for example a discrete one."""

    @abstractmethod
    def draw(
        self, process: Process, shape: tuple[int, ...], device: torch.device | str, state: tuple[int, ...]
    ) -> Tensor:
        """Draw times of this shape within `process.t_range()`, for joint states of shape `state` = (C, H, W).

        Random numbers come from torch's default generator. Values stay on the device.
        """

    def density(self, process: Process, t: Tensor, state: tuple[int, ...]) -> Tensor:
        """Return the probability density of the times t, like t. Raises ValueError if it is not known."""
        what = f"JointObjective.own_times needs the density of time_distributions.{type(self).__name__}"
        raise ValueError(f"{what}: implement its `density`, or bind Uniform or LogitNormal")


class ShiftedTimes(TimeDistribution):
    """Times t of a continuous process that are shifted to t / (t + shift (1 - t)).

    A component implements `unshifted`, and `unshifted_density` for its density. Times outside `Process.t_range` are set
    to its ends.

    Args:
        shift: a number; with shift > 1, training sees more noise, and the median 1/2 becomes 1 / (1 + shift).
            'dimension': sqrt(C H W / 4096) of the joint state (RAE, arXiv 2510.11690). 'resolution': sqrt(H W / 1024)
            of its grid (SD3, arXiv 2403.03206). Both are 1 for the 4 x 32 x 32 latents of Stable Diffusion at 256
            pixels. All channels count, because the network sees through the noise with all of them together.

    Examples:
        >>> from redi.core.time_distributions import Uniform
        >>> round(Uniform(shift="dimension").shift_for((768, 16, 16)), 3)
        6.928
    """

    def __init__(self, *, shift: Shift = 1.0):
        name = type(self).__name__
        if shift not in ("dimension", "resolution") and (isinstance(shift, str) or not 0 < shift < math.inf):
            allowed = "must be a finite number greater than 0, 'dimension', or 'resolution'; 1 is no shift"
            raise ValueError(f"{name}.shift = {shift!r}: {allowed}")
        self.shift = shift

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            name = type(self).__name__ + (f"(shift={self.shift!r})" if self.shift != 1 else "")
            what = f"JointObjective.time_distribution = {name} with JointObjective.process = {type(process).__name__}"
            allowed = "must be Uniform() without a shift, or bind a continuous process, such as FlowMatching()"
            raise ValueError(f"{what}, which has discrete timesteps: {allowed}")

    @abstractmethod
    def unshifted(self, process: Process, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """Draw times in [0, 1] before the shift."""

    def shift_for(self, state: tuple[int, ...]) -> float:
        """Return the shift for joint states (C, H, W)."""
        sizes = {"dimension": math.prod(state) / 4096, "resolution": math.prod(state[1:]) / 1024}
        return math.sqrt(sizes[self.shift]) if isinstance(self.shift, str) else self.shift

    def draw(
        self, process: Process, shape: tuple[int, ...], device: torch.device | str, state: tuple[int, ...]
    ) -> Tensor:
        times, shift = self.unshifted(process, shape, device), self.shift_for(state)
        return (times if shift == 1 else shifted(times, shift)).clamp(*process.t_range())

    def unshifted_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the density of the times before the shift."""
        return super().density(process, t, ())

    def density(self, process: Process, t: Tensor, state: tuple[int, ...]) -> Tensor:
        shift = self.shift_for(state)
        if shift == 1:
            return self.unshifted_density(process, t)
        slope = shift / (1 - t + shift * t) ** 2  # of the inverse, which has the shift 1 / shift
        return self.unshifted_density(process, shifted(t, 1 / shift)) * slope


time_distributions = Registry("time_distributions", TimeDistribution)
register = time_distributions.register
discover(__name__, time_distributions)
