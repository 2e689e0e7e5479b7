"""Processes: how data turns into noise, what the network predicts, and the conversions; the registry of them."""

from abc import ABC, abstractmethod

from torch import Tensor

from redi.core.registry import Registry, discover


class Process(ABC):
    """A Gaussian path x_t = alpha(t) x + sigma(t) noise with t = 0 pure noise and t = 1 data.

    All methods take t as a float or as a tensor that broadcasts against x (N, C, H, W), and work for every
    channel group alike.
    """

    @abstractmethod
    def corrupt(self, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """-> x_t (N, C, H, W) and the target of the network's prediction (N, C, H, W)."""

    @abstractmethod
    def velocity(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """dx_t/dt along the probability-flow ODE."""

    @abstractmethod
    def clean(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected data E[x | x_t]."""

    @abstractmethod
    def noise(self, prediction: Tensor, x_t: Tensor, t) -> Tensor:
        """The expected noise E[noise | x_t]; the score is -noise / sigma(t)."""

    @abstractmethod
    def sigma(self, t):
        """The standard deviation of the noise in x_t."""


processes = Registry("processes", Process)
register = processes.register
discover(__name__, processes)
