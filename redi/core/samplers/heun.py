"""Heun's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register, uniform_times


@register
class Heun(ContinuousSampler):
    """Second order: two evaluations a step (at both ends), so `num_evaluations` must be even."""

    def __init__(self, num_evaluations: int = 250):
        super().__init__(num_evaluations=num_evaluations)
        if num_evaluations % 2:
            raise ValueError(f"Heun.num_evaluations = {num_evaluations} must be even: each step takes two")

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = uniform_times(*clipped(process, start, end), self.num_evaluations // 2)
        x = keep(times[0], draw())
        for t, t_ahead in pairwise(times):
            dt = t_ahead - t
            slope = process.velocity(denoise(x, t), x, t)
            ahead = x + dt * slope
            slope_ahead = process.velocity(denoise(ahead, t_ahead), ahead, t_ahead)
            x = keep(t_ahead, x + dt * (slope + slope_ahead) / 2)
        return x
