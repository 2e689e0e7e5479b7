"""Euler-Maruyama on the reverse-time SDE."""

from itertools import pairwise

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, register
from redi.core.samplers.sde import SDE


@register
class EulerMaruyama(SDE):
    """First order, one evaluation a step: the sampler of SiT. Arguments and singularities: see `SDE`."""

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        self.check(process)
        times = self.times(process, self.num_evaluations - (self.last_step is not None))
        x = draw()
        for t, ahead in pairwise(times):
            mean = x + (ahead - t) * self.drift(denoise(x, t), process, x, t)
            x = self.kick(process, mean, t, ahead - t, draw)
        return x if self.last_step is None else self.land(denoise, process, x, times[-1])
