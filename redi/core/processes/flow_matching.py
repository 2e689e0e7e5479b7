"""The linear interpolant (SiT; flow matching, rectified flow)."""

from redi.core.processes import per_sample, register
from redi.core.processes.interpolant import Interpolant


@register
class FlowMatching(Interpolant):
    """The linear path x_t = t x + (1 - t) noise with velocity x - noise, as in the paper's SiT models.

    Sources: Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003; Ma et al. (SiT), arXiv 2401.08740.

    Examples:
        >>> import torch
        >>> process = FlowMatching()
        >>> x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        >>> t = torch.tensor([0.1, 0.9])  # a time per sample
        >>> x_t, velocity = process.corrupt(x, noise, t)
        >>> torch.allclose(x_t + (1 - t)[:, None, None, None] * velocity, x, atol=1e-6)  # the path is straight
        True
    """

    def alpha(self, t):
        return per_sample(t)

    def sigma(self, t):
        return 1 - per_sample(t)

    def d_alpha(self, t):
        return 1.0

    def d_sigma(self, t):
        return -1.0
