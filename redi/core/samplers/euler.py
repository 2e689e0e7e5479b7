"""Euler's method on the probability-flow ODE."""

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Sampler, register


@register
class Euler(Sampler):
    """First order: one evaluation a step, equal steps in t."""

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        x = draw()
        dt = 1 / self.num_evaluations
        for step in range(self.num_evaluations):
            t = step * dt
            x = x + dt * process.velocity(denoise(x, t), x, t)
        return x
