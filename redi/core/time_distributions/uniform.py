"""Uniform training times."""

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.time_distributions import ShiftedTimes, register


@register
class Uniform(ShiftedTimes):
    """Times uniform over the range of the process, as in the paper; the timesteps of a discrete process.

    Args:
        shift: see `ShiftedTimes`. A discrete process has none.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> times = Uniform().draw(FlowMatching(), (1000,), "cpu", (4, 8, 8))
        >>> abs(float(times.mean()) - 0.5) < 0.05
        True
    """

    def check(self, process: Process) -> None:
        if self.shift != 1:
            super().check(process)

    def unshifted(self, process: Process, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        return process.draw_times(shape, device)

    def unshifted_density(self, process: Process, t: Tensor) -> Tensor:
        first, last = process.t_range()
        return torch.full_like(t, 1 / (last - first))
