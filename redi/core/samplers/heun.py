"""Heun's method on the probability-flow ODE."""

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Sampler, register


@register
class Heun(Sampler):
    """Second order: two evaluations a step (at both ends), so `num_evaluations` must be even."""

    def __init__(self, *, num_evaluations: int = 250):
        super().__init__(num_evaluations=num_evaluations)
        if num_evaluations % 2:
            raise ValueError(f"Heun.num_evaluations = {num_evaluations} must be even: each step takes two")

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        x = draw()
        num_steps = self.num_evaluations // 2
        dt = 1 / num_steps
        for step in range(num_steps):
            t = step * dt
            slope = process.velocity(denoise(x, t), x, t)
            ahead = x + dt * slope
            slope_ahead = process.velocity(denoise(ahead, t + dt), ahead, t + dt)
            x = x + dt * (slope + slope_ahead) / 2
        return x
