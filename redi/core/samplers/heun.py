"""Heun's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, Denoise, Draw, Keep, clipped, register, uniform_times


@register
class Heun(ContinuousSampler):
    """The second-order method of Heun, with equal steps in t (Karras et al., arXiv 2206.00364, Algorithm 1).

        d = v(x, t),   x' = x + dt d,   x <- x + dt (d + v(x', t + dt)) / 2

    Every step, the last one too, takes two evaluations, so `num_evaluations` must be even.

    Examples:
        The method is exact if the velocity is linear in t: x(1) = noise + 1 for v = 2 t.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> x = Heun(num_evaluations=4)(lambda x, t: torch.full_like(x, 2 * t), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    def __init__(self, num_evaluations: int = 250):
        super().__init__(num_evaluations=num_evaluations)
        if num_evaluations % 2:
            raise ValueError(f"Heun.num_evaluations = {num_evaluations}: must be even, because each step takes two")

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = uniform_times(*clipped(process, start, end), self.num_evaluations // 2)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            dt = t_next - t
            velocity = process.velocity(denoise(x, t), x, t)
            predicted = x + dt * velocity
            velocity_next = process.velocity(denoise(predicted, t_next), predicted, t_next)
            x = keep(t_next, x + dt * (velocity + velocity_next) / 2)
        return x
