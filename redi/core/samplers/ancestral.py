"""The sampler of a discrete diffusion process."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.respacing import Respaced


@register
class Ancestral(Respaced):
    """Draws x_s from p(x_s | x_t) step by step, with the process's learned or fixed variances (Ho et al., arXiv
    2006.11239, Algorithm 2); the last step, onto the data, takes the mean. Of DDPM only. Where timesteps are left out,
    the variances are those of the shortened process. Arguments: see `Respaced`.
    """

    def check(self, process: Process) -> None:
        if process.num_timesteps is None:
            raise ValueError(
                f"generate.sampler = Ancestral needs discrete timesteps, which {type(process).__name__} does not have: "
                "set generate.sampler = samplers.EulerMaruyama(), samplers.Heun() or another, or train with "
                "processes.DDPM()"
            )
        super().check(process)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.steps(process, start, end)
        x = keep(times[0], draw())
        for t, s in pairwise(times):
            mean, log_variance = process.reverse_step(denoise(x, t), x, t, s)
            x = keep(s, mean if s == 1 else mean + (log_variance / 2).exp() * draw())
        return x
