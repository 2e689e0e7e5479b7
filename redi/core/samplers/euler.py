"""Euler's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register, uniform_times


@register
class Euler(ContinuousSampler):
    """The Euler method x <- x + dt v(x, t), with equal steps in t and one evaluation per step.

    Examples:
        A constant velocity is integrated exactly with any number of steps.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> x = Euler(num_evaluations=3)(lambda x, t: torch.ones_like(x), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = uniform_times(*clipped(process, start, end), self.num_evaluations)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            x = keep(t_next, x + (t_next - t) * process.velocity(denoise(x, t), x, t))
        return x
