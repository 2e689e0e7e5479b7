"""Euler-Maruyama on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Keep, register
from redi.core.samplers.sde import SDE


@register
class EulerMaruyama(SDE):
    """First order, one evaluation a step: the sampler of SiT. Arguments and singularities: see `SDE`."""

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        onto_data = self.last_step is not None and end == 1
        times = self.times(process, self.num_evaluations - onto_data, start, end)
        x = keep(times[0], draw())
        for t, ahead in pairwise(times):
            mean = x + (ahead - t) * self.drift(denoise(x, t), process, x, t)
            x = keep(ahead, self.add_noise(process, mean, t, ahead - t, draw))
        return keep(1.0, self.final_step(denoise, process, x, times[-1])) if onto_data else x
