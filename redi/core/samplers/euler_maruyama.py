"""Euler-Maruyama on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.sde import SDE


@register
class EulerMaruyama(SDE):
    """Euler-Maruyama on the reverse-time SDE, the sampler of SiT and of the paper: one evaluation per step.

        x <- x + dt (v + D score) + sqrt(2 D dt) w,   w ~ N(0, I)

    For arguments and singularities see `SDE`.

    Examples:
        Without diffusion, the sampler is `Euler` with a shorter last step.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> sampler = EulerMaruyama(num_evaluations=5, diffusion_norm=0.0)
        >>> x = sampler(lambda x, t: torch.ones_like(x), FlowMatching(), lambda: noise)
        >>> torch.allclose(x, noise + 1, atol=1e-6)
        True
    """

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.grid(process, start, end)
        x = keep(times[0], draw())
        for t, t_next in pairwise(times):
            step = process.between(t, t_next)
            mean = x + (t_next - t) * self.drift(denoise(x, t), step, x, t, t_next)
            x = keep(t_next, self.add_noise(step, mean, t, t_next - t, draw))
        return keep(1.0, self.final_step(denoise, process, x, times[-1])) if self.ends_on_data(end) else x
