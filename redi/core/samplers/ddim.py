"""Denoising diffusion implicit models."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, clipped, moving_groups, register, uniform_times
from redi.core.samplers.respacing import Respaced, Respacing


@register
class DDIM(Respaced):
    """Denoising diffusion implicit models (Song et al., arXiv 2010.02502, Eq. 12).

        x_s = alpha_s E[x | x_t] + sqrt(sigma_s^2 - std^2) E[noise | x_t] + std w,   w ~ N(0, I)

    `std` is eta times the standard deviation of the posterior q(x_s | x_t, x) (Eq. 16). A learned variance is ignored.
    DDIM works on every Gaussian path; continuous ones are divided into equal steps of t. The last step returns
    E[x | x_t].

    Args:
        num_evaluations, respacing: see `Respaced`; respacing needs a discrete process.
        eta: 0 is deterministic; 1 is the posterior, as in `Ancestral` with small variances.

    Examples:
        With eta = 0 the result depends on the initial noise only.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> noise = torch.randn(2, 1, 4, 4)
        >>> images = [DDIM(num_evaluations=4)(lambda x, t: -x, FlowMatching(), lambda: noise) for _ in range(2)]
        >>> torch.equal(*images)
        True
    """

    def __init__(self, num_evaluations: int = 250, *, eta: float = 0.0, respacing: Respacing | None = None):
        super().__init__(num_evaluations=num_evaluations, respacing=respacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM.eta = {eta}: must be in [0, 1]")
        self.eta = eta

    def check(self, process: Process) -> None:
        if process.num_timesteps is None and self.respacing is not None:
            needs = f"needs discrete timesteps, which {type(process).__name__} does not have"
            raise ValueError(f"DDIM.respacing = {self.respacing!r} {needs}: set DDIM.num_evaluations instead")
        super().check(process)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        if process.num_timesteps is None:
            first, last = clipped(process, start, end)
            times = [*(min(t, last) for t in uniform_times(first, end, self.num_evaluations)[:-1]), end]
        else:
            times = self.steps(process, start, end)
        x = keep(times[0], draw())
        for t, s in pairwise(times):
            prediction, before = denoise(x, t), x
            data, noise = process.clean(prediction, x, t), process.noise(prediction, x, t)
            x = process.alpha(s) * data
            if s < 1:
                # The fraction of the noise variance of x_s that x_t explains. Eq. 16: std^2 = sigma_s^2 (1 - fraction).
                explained = (process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))) ** 2
                x = x + process.sigma(s) * (1 - self.eta**2 * (1 - explained)) ** 0.5 * noise
                if self.eta:
                    x = x + self.eta * process.sigma(s) * (1 - explained) ** 0.5 * draw()
            x = keep(s, moving_groups(process, t, s, before, x))
        return x
