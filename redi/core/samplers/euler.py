"""Euler's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.grid import FixedSteps


@register
class Euler(FixedSteps):
    """The Euler method x <- x + dt v(x, t), with one evaluation per step. For arguments see `FixedSteps`.

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
        times = self.grid(process, start, end)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            velocity = process.between(t, t_next).velocity(denoise(x, t), x, t)
            x = keep(t_next, x + (t_next - t) * velocity)
        return x
