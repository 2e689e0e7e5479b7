"""The time grid of a sampler: equal steps, a shift towards the noise, a list of times, and the kinks of a clock."""

import math
from collections.abc import Sequence
from itertools import pairwise

from redi.core.clocks.shift import shifted
from redi.core.processes import Process
from redi.core.samplers import ContinuousSampler, clipped, uniform_times


class FixedSteps(ContinuousSampler):
    """A continuous sampler whose steps are chosen before it runs.

    If the groups have their own clock, the nearest inner time moves onto each kink, where a group starts or stops. The
    number of evaluations stays the same.

    Args:
        num_evaluations: network evaluations per image.
        shift: moves the equal steps u in [0, 1] to u / (u + shift (1 - u)). With shift > 1 the steps are finer near the
            noise; LightningDiT samples with 1 / 0.3 (arXiv 2501.01423).
        times: all shared times of the trajectory, increasing from 0 to 1, instead of equal steps. They determine
            num_evaluations, which need not be set. `start`, `end` and the range of the process replace the two ends.

    Examples:
        >>> from redi.core.processes import FlowMatching
        >>> from redi.core.samplers import Euler
        >>> [round(t, 2) for t in Euler(num_evaluations=4, shift=3.0).grid(FlowMatching())]
        [0.0, 0.1, 0.25, 0.5, 1.0]
        >>> Euler(times=[0, 0.5, 0.9, 1]).num_evaluations
        3
    """

    evaluations_per_step = 1
    whole_steps = True  # whether num_evaluations must be a multiple
    split = True  # whether times move onto the kinks of a clock

    def __init__(self, num_evaluations: int = 250, *, shift: float = 1.0, times: Sequence[float] | None = None):
        name = type(self).__name__
        if not 0 < shift < math.inf:
            raise ValueError(f"{name}.shift = {shift}: must be finite and greater than 0")
        if times is not None:
            times = [float(t) for t in times]
            if times[:1] + times[-1:] != [0, 1] or not all(t < t_next for t, t_next in pairwise(times)):
                raise ValueError(f"{name}.times = {times}: must increase strictly from 0 to 1, both included")
            if shift != 1:
                raise ValueError(f"{name}.shift = {shift} has no effect on {name}.times: set only one of the two")
            total = self.count(len(times) - 1)
            if num_evaluations not in (250, total):
                other = f"{name}.num_evaluations = {num_evaluations}"
                raise ValueError(f"{name}.times means {total} evaluations, but {other}: set only one of the two")
            num_evaluations = total
        super().__init__(num_evaluations=num_evaluations)
        if self.whole_steps and num_evaluations % self.evaluations_per_step:
            allowed = f"must be a multiple of {self.evaluations_per_step}, the evaluations per step"
            raise ValueError(f"{name}.num_evaluations = {num_evaluations}: {allowed}")
        self.shift, self.times = shift, times

    def count(self, num_steps: int) -> int:
        """Return the number of evaluations of a list of num_steps + 1 times."""
        return self.evaluations_per_step * num_steps

    def check(self, process: Process) -> None:
        super().check(process)
        self.grid(process)

    def grid(self, process: Process, start: float = 0.0, end: float = 1.0) -> list[float]:
        """Return the times of the steps. Raises ValueError if `times` or the kinks of the process do not fit."""
        num_steps = self.num_evaluations // self.evaluations_per_step
        return self.adapted(process, uniform_times(*clipped(process, start, end), num_steps))

    def adapted(self, process: Process, times: list[float]) -> list[float]:
        """Return equal steps shifted, or replaced by the list of times, with a time at each kink of the process."""
        name, num_steps, first, last = type(self).__name__, len(times) - 1, times[0], times[-1]
        if self.times is not None:
            times = [first, *self.times[1:num_steps], last]
            if bad := [t for t in times[1:-1] if not first < t < last]:
                raise ValueError(f"{name}.times has {bad}: must be between {first:g} and {last:g}, where the steps end")
        elif self.shift != 1:
            inner = [first + (last - first) * shifted(k / num_steps, self.shift) for k in range(1, num_steps)]
            times = [first, *inner, last]
        kinks = process.kinks() if self.split else ()
        return through_kinks(times, kinks, f"{name}.num_evaluations = {self.num_evaluations}")

    def provenance(self) -> dict:
        """Return name and settings. Equal steps are left out, so that records of version 0.1 stay valid."""
        equal = {"shift": 1.0, "times": None}.items()
        return {name: value for name, value in super().provenance().items() if (name, value) not in equal}


def through_kinks(times: list[float], kinks: Sequence[float], binding: str) -> list[float]:
    """Move the nearest inner time onto each kink between the first and the last time. `times` may also decrease.

    Raises ValueError, naming the `binding`, if there are fewer inner times than kinks.

    Examples:
        >>> through_kinks([0, 0.25, 0.5, 0.75, 1], [0.3, 0.4], "num_steps = 4")
        [0, 0.3, 0.4, 0.75, 1]
    """
    if times[-1] < times[0]:
        return through_kinks(times[::-1], kinks, binding)[::-1]
    inside = [kink for kink in kinks if times[0] < kink < times[-1]]
    num_inner = len(times) - 2
    if len(inside) > num_inner:
        shown = ", ".join(f"{kink:.4g}" for kink in inside)
        what = f"{binding} gives {num_inner + 1} steps, but groups start or stop at the times {shown}"
        raise ValueError(f"{what}: must give at least {len(inside) + 1} steps")
    times, index = list(times), 0
    for k, kink in enumerate(inside):
        # Leaves an inner time for each of the later kinks.
        candidates = range(index + 1, num_inner + 2 - len(inside) + k)
        index = min(candidates, key=lambda i: abs(times[i] - kink))
        times[index] = kink
    return times
