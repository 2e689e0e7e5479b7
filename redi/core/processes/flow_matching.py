"""The linear interpolant (SiT; flow matching, rectified flow)."""

from redi.core.processes import per_sample, register
from redi.core.processes.interpolant import Interpolant


@register
class FlowMatching(Interpolant):
    """x_t = t x + (1 - t) noise; by default the network predicts the velocity x - noise. The paper's SiT."""

    def alpha(self, t):
        return per_sample(t)

    def sigma(self, t):
        return 1 - per_sample(t)

    def d_alpha(self, t):
        return 1.0

    def d_sigma(self, t):
        return -1.0
