"""The sampler of a discrete diffusion process."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.respacing import Respaced


@register
class Ancestral(Respaced):
    """The ancestral sampler of DDPM: x_s ~ p(x_s | x_t), step by step (Ho et al., arXiv 2006.11239, Algorithm 2).

    The process defines the variances, learned or fixed. If timesteps are skipped, they are those of the shortened
    process. The last step returns the mean. For arguments see `Respaced`.

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
            needs = f"needs discrete timesteps, which {type(process).__name__} does not have"
            advice = "set it to samplers.EulerMaruyama() or samplers.Heun(), or train with processes.DDPM()"
            raise ValueError(f"generate.sampler = Ancestral {needs}: {advice}")
        super().check(process)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        times = self.steps(process, start, end)
        x = keep(times[0], draw())
        for t, s in pairwise(times):
            mean, log_variance = process.reverse_step(denoise(x, t), x, t, s)
            x = keep(s, mean if s == 1 else mean + (log_variance / 2).exp() * draw())
        return x
