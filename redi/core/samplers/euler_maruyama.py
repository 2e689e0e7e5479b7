"""Euler-Maruyama on the reverse-time SDE."""

import math

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Sampler, register


@register
class EulerMaruyama(Sampler):
    """The SDE sampler of SiT: dx = [v + w/2 score] dt + sqrt(w) dW with diffusion w(t) = sigma(t).

    With this w, the drift is v - noise/2: the score's pole at t = 1 cancels. The last evaluation takes the
    mean only, over a step of its own (SiT, appendix; Ma et al., arXiv 2401.08740).

    Args:
        num_evaluations: network evaluations, one a step.
        last_step: length of the noise-free last step, in units of t.
    """

    def __init__(self, *, num_evaluations: int = 250, last_step: float = 0.04):
        super().__init__(num_evaluations=num_evaluations)
        if not 0 < last_step <= 1:
            raise ValueError(f"EulerMaruyama.last_step = {last_step} lies outside (0, 1]")
        self.last_step = last_step

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        x = draw()
        num_steps = self.num_evaluations - 1
        # With very few evaluations the noisy steps would be longer than the last one: use equal steps then.
        last_step = max(self.last_step, 1 / self.num_evaluations)
        dt = (1 - last_step) / max(num_steps, 1)
        for step in range(num_steps):
            t = step * dt
            x = x + dt * self._drift(denoise, process, x, t) + math.sqrt(process.sigma(t) * dt) * draw()
        return x + last_step * self._drift(denoise, process, x, 1 - last_step)

    @staticmethod
    def _drift(denoise: Denoise, process: Process, x: Tensor, t: float) -> Tensor:
        prediction = denoise(x, t)
        # w/2 * score = sigma/2 * (-noise/sigma)
        return process.velocity(prediction, x, t) - process.noise(prediction, x, t) / 2
