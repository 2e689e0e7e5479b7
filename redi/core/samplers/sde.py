"""The reverse-time SDE: diffusion coefficients, their singularities, and the last step."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.samplers import Denoise, Draw, clipped, moving_groups, uniform_times
from redi.core.samplers.grid import FixedSteps

Form = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
DIFFUSION_FORMS = get_args(Form)
LAST_STEPS = ("mean", "euler", "tweedie", None)
MARGIN = 1e-3  # distance in t from the poles of the diffusion coefficient
LAST_STEP_SIZE = 0.04  # as published
ROUNDING = 1e-6  # of a time in float32


class SDE(FixedSteps):
    """A sampler of dx = [v + D score] dt + sqrt(2 D) dW, whose marginals are those of the ODE for every D(t) >= 0.

    Source: Ma et al. (SiT), arXiv 2401.08740; their w is 2 D. The score term D score = -(D / sigma) noise has a pole at
    t = 1, so the last evaluation is at t = 1 - `last_step_size`, or at most 1 - 1e-3 without a last step. 'sbdm' has a
    pole at t = 0 too and starts at t = 1e-3. docs/samplers.md lists all poles.

    If the groups have their own clock, each has the diffusion D of its own time. A group that stands still receives no
    noise. Neither does one in a step that takes it within `last_step_size` of its data, before the others: it follows
    the ODE until the last step.

    Args:
        num_evaluations: network evaluations, including the last step.
        diffusion_form: D(t), with n = diffusion_norm. 'sigma': n sigma(t), as in the published code; 'constant': n;
            'linear': n (1 - t); 'decreasing': (n cos(pi t) + 1)^2 / 4; 'increasing-decreasing': n sin(pi t)^2; 'sbdm':
            n (alpha'/alpha sigma^2 - sigma sigma'), the coefficient of score-based diffusion, which needs hundreds of
            steps.
        diffusion_norm: n, the scale of D. 0 gives the ODE, except for 'decreasing'.
        last_step: the step onto the data, without noise. 'mean' follows the drift of the SDE, 'euler' the velocity of
            the ODE, and 'tweedie' returns E[x | x_t]. None: all steps add noise.
        last_step_size: length of the last step in units of t; 0.04 as published. None: 0.04, or the length of the other
            steps if they are longer.
        shift: see `FixedSteps`. The grid covers the noisy steps, from the start to 1 - last_step_size.
        times: see `FixedSteps`. The last interval is the last step, instead of `last_step_size`.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.samplers import EulerMaruyama
        >>> sampler = EulerMaruyama(num_evaluations=5)
        >>> [round(t, 2) for t in sampler.grid(FlowMatching())]  # the last step goes from 0.96 to 1
        [0.0, 0.24, 0.48, 0.72, 0.96]
        >>> sampler.diffusion(FlowMatching(), 0.25)  # D = sigma
        0.75
    """

    def __init__(
        self, num_evaluations: int = 250, *, diffusion_form: Form = "sigma", diffusion_norm: float = 1.0,
        last_step: Literal["mean", "euler", "tweedie"] | None = "mean", last_step_size: float | None = 0.04,
        shift: float = 1.0, times: Sequence[float] | None = None,
    ):  # fmt: skip
        self.last_step, self.last_step_size = last_step, last_step_size  # `count` needs them
        super().__init__(num_evaluations=num_evaluations, shift=shift, times=times)
        name = type(self).__name__
        if diffusion_form not in DIFFUSION_FORMS:
            raise ValueError(f"{name}.diffusion_form = {diffusion_form!r}: must be one of {', '.join(DIFFUSION_FORMS)}")
        if not 0 <= diffusion_norm < math.inf:
            raise ValueError(f"{name}.diffusion_norm = {diffusion_norm}: must be finite and at least 0")
        if last_step not in LAST_STEPS:
            raise ValueError(f"{name}.last_step = {last_step!r}: must be one of {', '.join(map(repr, LAST_STEPS))}")
        if last_step_size is not None and not 0 < last_step_size <= 1:
            raise ValueError(f"{name}.last_step_size = {last_step_size}: must be in (0, 1], or None")
        self.diffusion_form, self.diffusion_norm = diffusion_form, diffusion_norm

    def count(self, num_steps: int) -> int:
        ends_on_data = self.ends_on_data(1)
        return super().count(num_steps - ends_on_data) + ends_on_data

    def check(self, process: Process) -> None:
        if process.num_timesteps is None and self.diffusion_form == "sbdm" and not hasattr(process, "d_alpha"):
            needs = f"needs the derivatives d_alpha and d_sigma, which {type(process).__name__} does not have"
            raise ValueError(f"{type(self).__name__}.diffusion_form = 'sbdm' {needs}: set it to 'sigma', for example")
        super().check(process)

    latest = 1.0  # upper limit on the end of the noisy steps if there is no last step

    def ends_on_data(self, end: float) -> bool:
        """Return whether a last step follows the noisy ones."""
        return self.last_step is not None and end == 1

    def grid(self, process: Process, start: float = 0.0, end: float = 1.0) -> list[float]:
        """Return the times of the noisy steps. The last step, if any, leads from the last time to 1."""
        num_steps = -(-(self.num_evaluations - self.ends_on_data(end)) // self.evaluations_per_step)
        first, last = clipped(process, start, end)
        if self.diffusion_form == "sbdm" and not torch.as_tensor(process.alpha(first)).all():
            first, last = clipped(process, max(first, MARGIN), end)
        if self.last_step is None or end < 1:
            return self.adapted(process, uniform_times(*clipped(process, first, min(last, self.latest)), num_steps))
        if not num_steps:
            return [first]
        even = (1 - first) / (num_steps + 1)
        size = max(LAST_STEP_SIZE, even) if self.last_step_size is None else self.last_step_size
        if start and start >= 1 - size:  # the remaining path is shorter than the last step
            size = even
        noisy_end = 1 - size if self.times is None else self.times[-2]
        return self.adapted(process, uniform_times(first, min(max(noisy_end, first), last), num_steps))

    def diffusion(self, process: Process, t: float, t_next: float | None = None):
        """Return D(t) per unit of shared time: a float, or (1, C, 1, 1) if the times of the groups differ.

        In a noisy step to `t_next` it is 0 for groups that come within `last_step_size` of their data.
        """
        norm, slope, own = self.diffusion_norm, process.slope(t), process.own_time(t)
        sin, cos = (torch.sin, torch.cos) if isinstance(own, Tensor) else (math.sin, math.cos)
        match self.diffusion_form:
            case "constant":
                diffusion = slope * norm
            case "sigma":
                diffusion = slope * norm * process.sigma(t)
            case "linear":
                diffusion = slope * norm * (1 - own)
            case "decreasing":
                diffusion = slope * 0.25 * (norm * cos(math.pi * own) + 1) ** 2
            case "increasing-decreasing":
                diffusion = slope * norm * sin(math.pi * own) ** 2
            case "sbdm":  # the derivatives contain the slope
                alpha, sigma = process.alpha(t), process.sigma(t)
                if isinstance(alpha, Tensor):  # a group that starts after the others is at its pole, alpha = 0
                    alpha = alpha.clamp(min=MARGIN)
                diffusion = norm * sigma * (process.d_alpha(t) / alpha * sigma - process.d_sigma(t))
        if not isinstance(own, Tensor):
            return diffusion
        noisy = slope > 0
        if t_next is not None:
            size = LAST_STEP_SIZE if self.last_step_size is None else self.last_step_size
            end = 1 - size if self.times is None else self.times[-2]
            noisy = noisy & (process.own_time(t_next) < (end if self.last_step else self.latest) + ROUNDING)
        return diffusion.where(noisy, 0.0)

    def drift(self, prediction: Tensor, process: Process, x: Tensor, t: float, t_next: float | None = None) -> Tensor:
        """Return the drift v + D score."""
        diffusion, sigma = self.diffusion(process, t, t_next), process.sigma(t)
        ratio = diffusion / sigma
        if isinstance(ratio, Tensor):  # 0 / 0 where a group is done
            ratio = ratio.where(diffusion > 0, 0.0)
        return process.velocity(prediction, x, t) - ratio * process.noise(prediction, x, t)

    def add_noise(self, process: Process, x: Tensor, t: float, dt: float, draw: Draw) -> Tensor:
        """Return x + sqrt(2 D dt) w, w ~ N(0, I)."""
        return x + (2 * self.diffusion(process, t, t + dt) * dt) ** 0.5 * draw()

    def final_step(self, denoise: Denoise, process: Process, x: Tensor, t: float) -> Tensor:
        """Take the last step, from t to 1, in one evaluation."""
        prediction, process = denoise(x, t), process.between(t, 1.0)
        if self.last_step == "tweedie":
            return moving_groups(process, t, 1.0, x, process.clean(prediction, x, t))
        if self.last_step == "euler":
            return x + (1 - t) * process.velocity(prediction, x, t)
        return x + (1 - t) * self.drift(prediction, process, x, t)

    kick, land = add_noise, final_step  # names in version 0.1
