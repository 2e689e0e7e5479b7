"""The generalised variance-preserving interpolant of SiT."""

import math

import torch

from redi.core.processes import per_sample, register
from redi.core.processes.interpolant import Interpolant


@register
class GVP(Interpolant):
    """The trigonometric path x_t = sin(pi t / 2) x + cos(pi t / 2) noise (Ma et al., arXiv 2401.08740).

    It preserves variance: if the data has variance 1, so does x_t.

    Examples:
        >>> process = GVP()
        >>> [round(process.alpha(t) ** 2 + process.sigma(t) ** 2, 6) for t in (0.0, 0.3, 1.0)]
        [1.0, 1.0, 1.0]
    """

    def alpha(self, t):
        return _sin(math.pi / 2 * per_sample(t))

    def sigma(self, t):
        return _sin(math.pi / 2 * (1 - per_sample(t)))  # equals cos(pi t / 2), but is exactly 0 at t = 1

    def d_alpha(self, t):
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t):
        return -math.pi / 2 * self.alpha(t)


def _sin(angle):
    return torch.sin(angle) if isinstance(angle, torch.Tensor) else math.sin(angle)
