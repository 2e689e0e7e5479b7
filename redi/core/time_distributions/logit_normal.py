"""Logit-normal training times."""

import math

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.time_distributions import Shift, ShiftedTimes, register


@register
class LogitNormal(ShiftedTimes):
    """Times t = sigmoid(n), n normal: fewer at the ends than Uniform (SD3, arXiv 2403.03206, section 3.1).

    Published: mean 0, std 1 (SFD, arXiv 2512.04926; RAE, arXiv 2510.11690, with shift='dimension'); -0.8, 0.8 (JiT).

    Args:
        mean, std: of the logit of t. With a negative mean, training sees more noise.
        shift: see `ShiftedTimes`.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> times = LogitNormal(mean=-0.8).draw(FlowMatching(), (10_000,), "cpu", (4, 8, 8))
        >>> abs(float(times.logit().mean()) + 0.8) < 0.05
        True
    """

    def __init__(self, *, mean: float = 0.0, std: float = 1.0, shift: Shift = 1.0):
        super().__init__(shift=shift)
        if not -math.inf < mean < math.inf:
            raise ValueError(f"LogitNormal.mean = {mean}: must be finite")
        if not 0 < std < math.inf:
            raise ValueError(f"LogitNormal.std = {std}: must be finite and greater than 0")
        self.mean, self.std = mean, std

    def unshifted(self, process: Process, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(shape, device=device))

    def unshifted_density(self, process: Process, t: Tensor) -> Tensor:
        t = t.clamp(1e-6, 1 - 1e-6)  # finite at both ends, where the density is 0
        z = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-z.square() / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
