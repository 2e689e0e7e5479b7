"""Heun's method on the probability-flow ODE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.grid import FixedSteps


@register
class Heun(FixedSteps):
    """The second-order method of Heun (Karras et al., arXiv 2206.00364, Algorithm 1).

        d = v(x, t),   x' = x + dt d,   x <- x + dt (d + v(x', t + dt)) / 2

    Every step, the last one too, takes two evaluations, so `num_evaluations` must be even. For arguments see
    `FixedSteps`.

    Examples:
        The method is exact if the velocity is linear in t: x(1) = noise + 1 for v = 2 t.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> x = Heun(num_evaluations=4)(lambda x, t: torch.full_like(x, 2 * t), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    evaluations_per_step = 2

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.grid(process, start, end)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            dt, step = t_next - t, process.between(t, t_next)
            velocity = step.velocity(denoise(x, t), x, t)
            predicted = x + dt * velocity
            velocity_next = step.velocity(denoise(predicted, t_next), predicted, t_next)
            x = keep(t_next, x + dt * (velocity + velocity_next) / 2)
        return x
