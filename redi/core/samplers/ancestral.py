"""The sampler of a discrete diffusion process."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.respacing import Respaced


@register
class Ancestral(Respaced):
    """The ancestral sampler of DDPM: x_s ~ p(x_s | x_t), step by step (Ho et al., arXiv 2006.11239, Algorithm 2).

    Variances are the learned or fixed ones of the process. If timesteps are skipped, they are those of the shortened
    process. The last step, onto the data, takes the mean. For arguments see `Respaced`.

    Examples:
        With the exact noise of a point mass at 3, the samples are 3.

        >>> import torch
        >>> from redi.core.processes import DDPM
        >>> process, target = DDPM(learned_variance=()), torch.full((2, 1, 4, 4), 3.0)
        >>> def denoise(x, t):
        ...     return (x - process.alpha(t) * target) / process.sigma(t)
        >>> x = Ancestral(num_evaluations=10)(denoise, process, lambda: torch.randn(2, 1, 4, 4))
        >>> torch.allclose(x, target, atol=1e-4)
        True
    """

    def check(self, process: Process) -> None:
        if process.num_timesteps is None:
            raise ValueError(
                f"generate.sampler = Ancestral needs discrete timesteps, which {type(process).__name__} does not have: "
                "set generate.sampler to samplers.EulerMaruyama(), samplers.Heun() or another sampler of a continuous "
                "process, or train with processes.DDPM()"
            )
        super().check(process)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.steps(process, start, end)
        x = keep(times[0], draw())
        for t, s in pairwise(times):
            mean, log_variance = process.reverse_step(denoise(x, t), x, t, s)
            x = keep(s, mean if s == 1 else mean + (log_variance / 2).exp() * draw())
        return x
