"""Heun's method on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.sde import MARGIN, SDE


@register
class StochasticHeun(SDE):
    """Noise first, then Heun's predictor and corrector on the drift (Ma et al., arXiv 2401.08740; after Karras et al.,
    arXiv 2206.00364): two evaluations a step, second order in the drift, weakly first in all. A left-over evaluation
    makes the first step an Euler-Maruyama step. Arguments and singularities: see `SDE`.
    """

    latest = 1 - MARGIN  # the corrector evaluates where the step ends

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        onto_data = self.last_step is not None and end == 1
        num_noisy = self.num_evaluations - onto_data
        times = self.times(process, (num_noisy + 1) // 2, start, end)
        x = keep(times[0], draw())
        for step, (t, ahead) in enumerate(pairwise(times)):
            dt = ahead - t
            if step == 0 and num_noisy % 2:
                mean = x + dt * self.drift(denoise(x, t), process, x, t)
                x = keep(ahead, self.add_noise(process, mean, t, dt, draw))
                continue
            x = self.add_noise(process, x, t, dt, draw)
            drift = self.drift(denoise(x, t), process, x, t)
            predicted = x + dt * drift
            x = keep(ahead, x + dt * (drift + self.drift(denoise(predicted, ahead), process, predicted, ahead)) / 2)
        return keep(1.0, self.final_step(denoise, process, x, times[-1])) if onto_data else x
