"""The linear interpolant with velocity prediction (SiT; flow matching, rectified flow)."""

from torch import Tensor

from redi.core.processes import Process, register


@register
class FlowMatching(Process):
    """x_t = t x + (1 - t) noise; the network predicts the velocity x - noise."""

    def corrupt(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * x + (1 - t) * noise, x - noise

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return prediction

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return x_t + (1 - t) * prediction

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        return x_t - t * prediction

    def sigma(self, t):
        return 1 - t
