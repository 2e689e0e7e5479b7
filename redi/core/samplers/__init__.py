"""Samplers: from noise to data along a process."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from redi.core.processes import Process
from redi.core.registry import Registry, discover
from redi.core.samplers.noise import ImageNoise as ImageNoise

Denoise = Callable[[Tensor, float], Tensor]  # x_t (N, C, H, W), t -> the (guided) prediction of the network
Draw = Callable[[], Tensor]  # -> standard normal noise (N, C, H, W)
Keep = Callable[[float, Tensor], Tensor]  # t, x -> x; records the state if a trajectory was requested


class Sampler:
    """Integrate from t = 0 (noise) to t = 1 (data) in exactly `num_evaluations` calls of `denoise`.

    Samplers stay within `Process.t_range`. A component implements `run` and may override `check`. If it needs a
    velocity, it derives from `ContinuousSampler`. Attributes are settings and must be JSON values.

    Args:
        num_evaluations: network evaluations per image.

    Examples:
        With the exact velocity field of a point mass at 3, samples are 3.

        >>> import torch
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.samplers import Euler
        >>> target = torch.full((2, 1, 4, 4), 3.0)
        >>> def denoise(x, t):
        ...     return (target - x) / (1 - t)
        >>> x = Euler(num_evaluations=8)(denoise, FlowMatching(), lambda: torch.randn(2, 1, 4, 4))
        >>> torch.allclose(x, target)
        True
    """

    num_evaluations: Any  # int; None: the sampler chooses its steps while it runs (AdaptiveODE)

    def __init__(self, num_evaluations: int = 250):
        if num_evaluations < 1:
            raise ValueError(f"{type(self).__name__}.num_evaluations = {num_evaluations}: must be at least 1")
        self.num_evaluations = num_evaluations

    def check(self, process: Process) -> None:
        """Raise ValueError if this sampler does not support the process. Called before the first evaluation."""

    def __call__(
        self, denoise: Denoise, process: Process, draw: Draw, *, start: float = 0.0, end: float = 1.0,
        trajectory: list[tuple[float, Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """Sample x (N, C, H, W) at `end`.

        Args:
            denoise: the (guided) network, (x_t, t) -> prediction.
            process: the process that the network was trained with.
            draw: returns noise (N, C, H, W). The first draw is the state at `start`. `iter(tensors).__next__` replays
                stored noise.
            start, end: the part of the path to follow, clipped to `Process.t_range`. If end < 1, samplers of the SDE
                skip their last step.
            trajectory: a list that receives (t, x) at the start and after every step: num_steps + 1 states on the
                device.

        Raises ValueError as `check` does, or if the process cannot be evaluated between start and end.
        """
        self.check(process)
        if not 0 <= start < end <= 1:
            raise ValueError(f"start = {start}, end = {end}: must satisfy 0 <= start < end <= 1")

        def keep(t: float, x: Tensor) -> Tensor:
            if trajectory is not None:
                trajectory.append((t, x))
            return x

        return self.run(denoise, process, draw, start, end, keep)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        """Take the steps of `__call__`: x = keep(t, x) for the initial state and after every step."""
        raise NotImplementedError

    def provenance(self) -> dict:
        """Return the sampler's name and settings, which are stored with the samples."""
        return {"name": type(self).__name__, **vars(self)}


class ContinuousSampler(Sampler):
    """A sampler that follows the velocity. `check` raises ValueError for discrete processes, which have none.

    A step from t to t_next takes its velocity from `process.between(t, t_next)`, which is exact under a clock.

    Examples:
        >>> from redi.core.samplers import DDIM, Euler
        >>> isinstance(Euler(), ContinuousSampler), isinstance(DDIM(), ContinuousSampler)
        (True, False)
    """

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            needs = f"needs a velocity, but {type(process).__name__} has discrete timesteps"
            raise ValueError(f"samplers.{type(self).__name__} {needs}: use samplers.Ancestral() or samplers.DDIM()")


def clipped(process: Process, start: float, end: float) -> tuple[float, float]:
    """Return the part of [start, end] in which the process can be evaluated. Raises ValueError if there is none."""
    first, last = process.t_range()
    if max(first, start) >= min(last, end):
        allowed = f"must overlap [{first:g}, {last:g}], the t_range of {type(process).__name__}"
        raise ValueError(f"start = {start}, end = {end}: {allowed}")
    return max(first, start), min(last, end)


def moving_groups(process: Process, t: float, t_next: float, x: Tensor, x_next: Tensor) -> Tensor:
    """Return x_next with x in the groups that stand still from t to t_next."""
    slope = process.between(t, t_next).slope(t)
    return x_next.where(slope > 0, x) if isinstance(slope, Tensor) else x_next


def uniform_times(first: float, last: float, num_steps: int) -> list[float]:
    """Return num_steps + 1 equally spaced times. Both ends are exact."""
    return [first + (last - first) * k / num_steps for k in range(num_steps)] + [last]


samplers = Registry("samplers", Sampler)
register = samplers.register
discover(__name__, samplers)
