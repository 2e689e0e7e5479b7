"""Heun's method on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.sde import MARGIN, SDE


@register
class StochasticHeun(SDE):
    """Heun's method on the reverse-time SDE: add noise, then predict and correct along the drift.

        x' = x + sqrt(2 D dt) w,   d = drift(x', t),   x <- x' + dt (d + drift(x' + dt d, t + dt)) / 2

    Sources: Ma et al., arXiv 2401.08740; Karras et al., arXiv 2206.00364. Each step takes two evaluations; if one is
    left over, the first step is an Euler-Maruyama step. The method is second order in the drift and of weak order one
    overall. For arguments and singularities see `SDE`.

    Examples:
        Without diffusion and with a velocity linear in t, the noisy steps are exact.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> sampler = StochasticHeun(num_evaluations=4, diffusion_norm=0.0, last_step=None)
        >>> x = sampler(lambda x, t: torch.full_like(x, 2 * t), FlowMatching(), lambda: noise, end=0.5)
        >>> torch.allclose(x, noise + 0.25, atol=1e-6)
        True
    """

    latest = 1 - MARGIN  # the corrector is evaluated at the end of the step
    evaluations_per_step, whole_steps = 2, False

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        num_noisy = self.num_evaluations - self.ends_on_data(end)
        times = self.grid(process, start, end)
        x = keep(times[0], draw())
        for k, (t, t_next) in enumerate(pairwise(times)):
            dt, step = t_next - t, process.between(t, t_next)
            if k == 0 and num_noisy % 2:
                mean = x + dt * self.drift(denoise(x, t), step, x, t, t_next)
                x = keep(t_next, self.add_noise(step, mean, t, dt, draw))
                continue
            x = self.add_noise(step, x, t, dt, draw)
            drift = self.drift(denoise(x, t), step, x, t, t_next)
            predicted = x + dt * drift
            corrected = self.drift(denoise(predicted, t_next), step, predicted, t_next, t_next)
            x = keep(t_next, x + dt * (drift + corrected) / 2)
        return keep(1.0, self.final_step(denoise, process, x, times[-1])) if self.ends_on_data(end) else x
