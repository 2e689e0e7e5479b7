"""Uniform training times."""

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.time_distributions import TimeDistribution, register


@register
class Uniform(TimeDistribution):
    """Times uniform over the range of the process, as in the paper; the timesteps of a discrete process.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> times = Uniform().draw(FlowMatching(), (1000,), "cpu", (4, 8, 8))
        >>> abs(float(times.mean()) - 0.5) < 0.05
        True
    """

    def draw(
        self, process: Process, shape: tuple[int, ...], device: torch.device | str, state: tuple[int, ...]
    ) -> Tensor:
        return process.draw_times(shape, device)
