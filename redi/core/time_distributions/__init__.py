"""Time distributions: how training draws its times."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from redi.core.processes import Process
from redi.core.registry import Registry, discover


class TimeDistribution(ABC):
    """The distribution of the training times in [0, 1].

    A component implements `draw`. Public attributes are settings and must be JSON values.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> class Noisy(TimeDistribution):
        ...     def draw(self, process, shape, device, state):
        ...         return torch.rand(shape, device=device) / 2
        >>> bool((Noisy().draw(FlowMatching(), (100,), "cpu", (4, 8, 8)) < 0.5).all())
        True
    """

    def check(self, process: Process) -> None:  # noqa: B027  # optional
        """Raise ValueError if the times of this distribution do not suit the process, for example a discrete one."""

    @abstractmethod
    def draw(
        self, process: Process, shape: tuple[int, ...], device: torch.device | str, state: tuple[int, ...]
    ) -> Tensor:
        """Draw times of this shape within `process.t_range()`, for joint states of shape `state` = (C, H, W)."""


time_distributions = Registry("time_distributions", TimeDistribution)
register = time_distributions.register
discover(__name__, time_distributions)
