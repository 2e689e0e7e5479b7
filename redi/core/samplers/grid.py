"""The time grid of a sampler: equal steps, a shift towards the noise, a list of times, and the kinks of a clock."""

import math
from collections.abc import Sequence

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

    def __init__(self, num_evaluations: int = 250, *, shift: float = 1.0, times: Sequence[float] | None = None):
        name = type(self).__name__
        if not 0 < shift < math.inf:
            raise ValueError(f"{name}.shift = {shift}: must be finite and greater than 0")
        if times is not None:
            times = [float(t) for t in times]
            if len(times) < 2 or sorted(set(times)) != times or (times[0], times[-1]) != (0, 1):
                raise ValueError(f"{name}.times = {times}: must increase strictly from 0 to 1, both included")
            if shift != 1:
                raise ValueError(f"{name}.shift = {shift} has no effect on {name}.times: set only one of the two")
            total = self.count(len(times) - 1)
            if num_evaluations not in (250, total):
                other = f"{name}.num_evaluations = {num_evaluations}"
                raise ValueError(f"{name}.times means {total} evaluations, but {other}: set only one of the two")
            num_evaluations = total
        super().__init__(num_evaluations=num_evaluations)
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
        if self.shift != 1:
            fractions = (k / num_steps for k in range(1, num_steps))
            inner = [first + (last - first) * u / (u + self.shift * (1 - u)) for u in fractions]
            times = [first, *inner, last]
        elif self.times is not None:
            inner = self.times[1:num_steps]
            if bad := [t for t in inner if not first < t < last]:
                raise ValueError(f"{name}.times has {bad}: must be between {first:g} and {last:g}, where the steps end")
            times = [first, *inner, last]
        try:
            return through_kinks(times, process.kinks())
        except ValueError as error:
            raise ValueError(f"{name}.num_evaluations = {self.num_evaluations}: {error}") from None

    def provenance(self) -> dict:
        """Return name and settings. Equal steps are left out, so that records of version 0.1 stay valid."""
        defaults = {"shift": 1.0, "times": None}
        record = super().provenance()
        return {key: value for key, value in record.items() if key not in defaults or value != defaults[key]}


def through_kinks(times: list[float], kinks: Sequence[float]) -> list[float]:
    """Move the nearest inner time onto each kink between the first and the last time. `times` may also decrease.

    Raises ValueError if there are fewer inner times than kinks.

    Examples:
        >>> through_kinks([0, 0.25, 0.5, 0.75, 1], [0.3, 0.4])
        [0, 0.3, 0.4, 0.75, 1]
    """
    if times[-1] < times[0]:
        return through_kinks(times[::-1], kinks)[::-1]
    inside = [kink for kink in kinks if times[0] < kink < times[-1]]
    num_inner = len(times) - 2
    if inside and len(inside) > num_inner:
        shown = ", ".join(f"{kink:.4g}" for kink in inside)
        what = f"{num_inner + 1} steps cannot end at the {len(inside)} times at which groups start or stop ({shown})"
        raise ValueError(f"{what}: must be at least {len(inside) + 1} steps")
    times, index = list(times), 0
    for k, kink in enumerate(inside):
        # Leaves an inner time for each of the later kinks.
        candidates = range(index + 1, num_inner + 2 - len(inside) + k)
        index = min(candidates, key=lambda i: abs(times[i] - kink))
        times[index] = kink
    return times
