"""Processes: how data turns into noise, what the network predicts, and the conversions; the registry of them."""

from torch import Tensor

from redi.core.registry import Registry, discover


class Process:
    """A Gaussian path x_t = alpha(t) x + sigma(t) noise with t = 0 pure noise and t = 1 data.

    All methods take t as a float or as a tensor that broadcasts against x (N, C, H, W), and work for every
    channel group alike.
    """

    def corrupt(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """-> x_t (N, C, H, W) and the target of the network's prediction (N, C, H, W)."""
        raise NotImplementedError

    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """dx_t/dt along the probability-flow ODE."""
        raise NotImplementedError

    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected data E[x | x_t]."""
        raise NotImplementedError

    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected noise E[noise | x_t]; the score is -noise / sigma(t)."""
        raise NotImplementedError

    def sigma(self, t):
        """The standard deviation of the noise in x_t."""
        raise NotImplementedError


processes = Registry("processes", Process)
register = processes.register
discover(__name__, processes)
