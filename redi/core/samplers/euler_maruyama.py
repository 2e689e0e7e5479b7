"""Euler-Maruyama on the reverse-time SDE."""

import math

from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, Sampler, register


@register
class EulerMaruyama(Sampler):
    """The SDE sampler of SiT: dx = [v + w/2 score] dt + sqrt(w) dW with w(t) = diffusion * sigma(t).

    Every w >= 0 leaves the marginals as they are. With this one the drift is v - diffusion/2 * noise: the score's
    pole at t = 1 cancels. The last evaluation takes the mean only, over a step of its own (Ma et al., arXiv
    2401.08740).

    Args:
        num_evaluations: network evaluations, one a step.
        diffusion: 2 is what the published code of this family samples with (drift v + sigma score, noise
            sqrt(2 sigma)); 1 is w = sigma; 0 is Euler's method on the ODE.
        last_step: length of the noise-free last step, in units of t.
    """

    def __init__(self, *, num_evaluations: int = 250, diffusion: float = 2.0, last_step: float = 0.04):
        super().__init__(num_evaluations=num_evaluations)
        if diffusion < 0:
            raise ValueError(f"EulerMaruyama.diffusion = {diffusion} must not be negative")
        if not 0 < last_step <= 1:
            raise ValueError(f"EulerMaruyama.last_step = {last_step} lies outside (0, 1]")
        self.diffusion = diffusion
        self.last_step = last_step

    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        x = draw()
        num_steps = self.num_evaluations - 1
        # With very few evaluations the noisy steps would be longer than the last one: use equal steps then.
        last_step = max(self.last_step, 1 / self.num_evaluations)
        dt = (1 - last_step) / max(num_steps, 1)
        for step in range(num_steps):
            t = step * dt
            spread = math.sqrt(self.diffusion * process.sigma(t) * dt)
            x = x + dt * self._drift(denoise, process, x, t) + spread * draw()
        return x + last_step * self._drift(denoise, process, x, 1 - last_step)

    def _drift(self, denoise: Denoise, process: Process, x: Tensor, t: float) -> Tensor:
        prediction = denoise(x, t)
        # w/2 * score = diffusion * sigma/2 * (-noise/sigma)
        return process.velocity(prediction, x, t) - self.diffusion / 2 * process.noise(prediction, x, t)
