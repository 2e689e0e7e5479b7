"""Euler's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, register, uniform_times


@register
class Euler(ContinuousSampler):
    """First order: one evaluation a step, equal steps in t."""

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        self.check(process)
        x = draw()
        for t, ahead in pairwise(uniform_times(*process.t_range(), self.num_evaluations)):
            x = x + (ahead - t) * process.velocity(denoise(x, t), x, t)
        return x
