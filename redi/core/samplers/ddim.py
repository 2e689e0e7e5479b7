"""Denoising diffusion implicit models."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, clipped, register, uniform_times
from redi.core.samplers.respacing import Respaced, Respacing


@register
class DDIM(Respaced):
    """x_s = alpha_s x + sqrt(sigma_s^2 - spread^2) noise + spread w, with E[x | x_t] and E[noise | x_t] for x and noise
    (Song et al., arXiv 2010.02502, Eq. 12); a learned variance is not used.

    Works along every Gaussian path: on a continuous one in equal steps of t, the last of which ends at E[x | x_t].
    There, eta = 1 is the posterior q(x_s | x_t, x) of the Markovian process with these marginals, as it is for DDPM.

    Args:
        num_evaluations, respacing: see `Respaced`; respacing is for discrete processes.
        eta: share of the posterior's standard deviation that is drawn anew; 0 is deterministic.
    """

    def __init__(self, num_evaluations: int = 250, *, eta: float = 0.0, respacing: Respacing | None = None):
        super().__init__(num_evaluations=num_evaluations, respacing=respacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM.eta = {eta} lies outside [0, 1]")
        self.eta = eta

    def check(self, process: Process) -> None:
        if process.num_timesteps is None and self.respacing is not None:
            lacks = f"chooses among discrete timesteps, which {type(process).__name__} does not have"
            raise ValueError(f"DDIM.respacing = {self.respacing!r} {lacks}: set DDIM.num_evaluations instead")
        super().check(process)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        if process.num_timesteps is None:
            first, last = clipped(process, start, end)
            times = [*(min(t, last) for t in uniform_times(first, end, self.num_evaluations)[:-1]), end]
        else:
            times = self.steps(process, start, end)
        x = keep(times[0], draw())
        for t, s in pairwise(times):
            prediction = denoise(x, t)
            data, noise = process.clean(prediction, x, t), process.noise(prediction, x, t)
            x = process.alpha(s) * data
            if s < 1:
                # Eq. 16 at eta = 1 for sigma^2 = 1 - alpha^2: the share of x_s's variance that x_t explains.
                known = (process.alpha(t) * process.sigma(s) / (process.alpha(s) * process.sigma(t))) ** 2
                x = x + process.sigma(s) * (1 - self.eta**2 * (1 - known)) ** 0.5 * noise
                if self.eta:
                    x = x + self.eta * process.sigma(s) * (1 - known) ** 0.5 * draw()
            x = keep(s, x)
        return x
