"""Samplers: from noise to data along a process, and the registry of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from redi.core.processes import Process
from redi.core.registry import Registry, discover
from redi.core.samplers.noise import ImageNoise as ImageNoise

Denoise = Callable[[Tensor, float], Tensor]  # x_t (N, C, H, W), t -> the network's (guided) prediction
Draw = Callable[[], Tensor]  # -> (N, C, H, W) standard normal


class Sampler(ABC):
    """Integrates from t = 0 (noise) to t = 1 (data), over the part of it on which the process can be evaluated
    (`Process.t_range`), in exactly `num_evaluations` calls of `denoise`.
    """

    # None where the sampler itself decides while it runs (AdaptiveODE).
    num_evaluations: int | None

    def __init__(self, *, num_evaluations: int = 250):
        if num_evaluations < 1:
            raise ValueError(f"{type(self).__name__}.num_evaluations = {num_evaluations}: at least 1 is needed")
        self.num_evaluations = num_evaluations

    def check(self, process: Process) -> None:  # noqa: B027 - most processes suit most samplers
        """Raises ValueError where this sampler cannot follow such a process; called before the first evaluation."""

    @abstractmethod
    def __call__(self, denoise: Denoise, process: Process, draw: Draw) -> Tensor:
        """Draws the initial noise and all later noise from `draw`; -> x (N, C, H, W) at t = 1."""

    def provenance(self) -> dict:
        """Name and settings, for the record of what was sampled."""
        return {"name": type(self).__name__, **vars(self)}


class ContinuousSampler(Sampler):
    """A sampler that follows the velocity, which discrete processes do not have."""

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            raise ValueError(
                f"samplers.{type(self).__name__} needs a velocity, but {type(process).__name__} has discrete "
                "timesteps: bind @samplers.Ancestral() or @samplers.DDIM() in its place"
            )


def uniform_times(first: float, last: float, num_steps: int) -> list[float]:
    """num_steps + 1 times at equal distances, both ends included exactly."""
    return [first + (last - first) * k / num_steps for k in range(num_steps)] + [last]


samplers = Registry("samplers", Sampler)
register = samplers.register
discover(__name__, samplers)
