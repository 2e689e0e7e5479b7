"""Samplers: from noise to data along a process, and the registry of them."""

from collections.abc import Callable

from torch import Tensor

from redi.core.processes import Process
from redi.core.registry import Registry, discover
from redi.core.samplers.noise import ImageNoise as ImageNoise

Denoise = Callable[[Tensor, float], Tensor]  # x_t (N, C, H, W), t -> the network's (guided) prediction
Draw = Callable[[], Tensor]  # -> (N, C, H, W) standard normal
Keep = Callable[[float, Tensor], Tensor]  # t, x -> x, which becomes part of the trajectory where one is wanted


class Sampler:
    """Integrates from t = 0 (noise) to t = 1 (data), over the part of it on which the process can be evaluated
    (`Process.t_range`), in exactly `num_evaluations` calls of `denoise`. A component implements `run` and may override
    `check`; one that needs a velocity derives from `ContinuousSampler`. Its attributes are settings, as JSON.
    """

    # None where the sampler itself decides while it runs (AdaptiveODE).
    num_evaluations: int | None

    def __init__(self, num_evaluations: int = 250):
        if num_evaluations < 1:
            raise ValueError(f"{type(self).__name__}.num_evaluations = {num_evaluations}: at least 1 is needed")
        self.num_evaluations = num_evaluations

    def check(self, process: Process) -> None:
        """Raises ValueError where this sampler cannot follow such a process; called before the first evaluation."""

    def __call__(
        self, denoise: Denoise, process: Process, draw: Draw, *, start: float = 0.0, end: float = 1.0,
        trajectory: list[tuple[float, Tensor]] | None = None,
    ) -> Tensor:  # fmt: skip
        """-> x (N, C, H, W) at `end`.

        Args:
            draw: the source of noise (`iter(tensors).__next__` replays some). Its first value is the state at `start`.
            start, end: the part of the path to follow, as far as the process can be evaluated there. Before t = 1 a
                sampler of the SDE ends without its last step.
            trajectory: a list to which (t, x) is appended at the start and after every step: all these states,
                (num_steps + 1) N C H W numbers on x's device, where otherwise only the current one is in memory.

        Raises ValueError as `check`, or where the process cannot be evaluated between start and end.
        """
        self.check(process)
        if not 0 <= start < end <= 1:
            raise ValueError(f"start = {start}, end = {end}: 0 <= start < end <= 1 is needed")

        def keep(t: float, x: Tensor) -> Tensor:
            if trajectory is not None:
                trajectory.append((t, x))
            return x

        return self.run(denoise, process, draw, start, end, keep)

    def run(self, denoise: Denoise, process: Process, draw: Draw, start: float, end: float, keep: Keep) -> Tensor:
        """The steps of `__call__`: x = keep(t, x) of the initial state and after every step."""
        raise NotImplementedError

    def provenance(self) -> dict:
        """Name and settings, for the record of what was sampled."""
        return {"name": type(self).__name__, **vars(self)}


class ContinuousSampler(Sampler):
    """A sampler that follows the velocity, which discrete processes do not have."""

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            needs = f"needs a velocity, but {type(process).__name__} has discrete timesteps"
            advice = "set samplers.Ancestral() or samplers.DDIM() in its place"
            raise ValueError(f"samplers.{type(self).__name__} {needs}: {advice}")


def clipped(process: Process, start: float, end: float) -> tuple[float, float]:
    """The part of [start, end] in which the process can be evaluated."""
    first, last = process.t_range()
    if max(first, start) >= min(last, end):
        limits = f"{type(process).__name__} is evaluated from t = {first:g} to {last:g}"
        raise ValueError(f"start = {start}, end = {end}: no step is left, because {limits}")
    return max(first, start), min(last, end)


def uniform_times(first: float, last: float, num_steps: int) -> list[float]:
    """num_steps + 1 times at equal distances, both ends included exactly."""
    return [first + (last - first) * k / num_steps for k in range(num_steps)] + [last]


samplers = Registry("samplers", Sampler)
register = samplers.register
discover(__name__, samplers)
