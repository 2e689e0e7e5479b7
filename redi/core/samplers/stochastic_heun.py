"""Heun's method on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, register
from redi.core.samplers.sde import MARGIN, SDE


@register
class StochasticHeun(SDE):
    """Noise first, then Heun's predictor and corrector on the drift (Ma et al., arXiv 2401.08740; after Karras et al.,
    arXiv 2206.00364): two evaluations a step. Second order in the drift, weakly first in all. Where one evaluation is
    left over, the first step is an Euler-Maruyama step. Arguments and singularities: see `SDE`.
    """

    def end(self, last: float) -> float:
        return min(last, 1 - MARGIN)  # the corrector evaluates where the step ends

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        self.check(process)
        num_noisy = self.num_evaluations - (self.last_step is not None)
        times = self.times(process, (num_noisy + 1) // 2)
        x = draw()
        for step, (t, ahead) in enumerate(pairwise(times)):
            dt = ahead - t
            if step == 0 and num_noisy % 2:
                x = self.kick(process, x + dt * self.drift(denoise(x, t), process, x, t), t, dt, draw)
                continue
            x = self.kick(process, x, t, dt, draw)
            drift = self.drift(denoise(x, t), process, x, t)
            predicted = x + dt * drift
            x = x + dt * (drift + self.drift(denoise(predicted, ahead), process, predicted, ahead)) / 2
        return x if self.last_step is None else self.land(denoise, process, x, times[-1])
