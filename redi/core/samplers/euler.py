"""Euler's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register, uniform_times


@register
class Euler(ContinuousSampler):
    """First order: one evaluation a step, equal steps in t."""

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = uniform_times(*clipped(process, start, end), self.num_evaluations)
        x = keep(times[0], draw())
        for t, ahead in pairwise(times):
            x = keep(ahead, x + (ahead - t) * process.velocity(denoise(x, t), x, t))
        return x
