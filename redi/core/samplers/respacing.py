"""Which timesteps of a discrete process a sampler visits."""

import re
from collections.abc import Sequence

from redi.core.processes import Process
from redi.core.samplers import Sampler

Respacing = str | int | Sequence[int]


class Respaced(Sampler):
    """A sampler whose steps may leave out timesteps of a discrete process.

    Args:
        num_evaluations: network evaluations, one a step, spread evenly over the timesteps.
        respacing: other timesteps of a discrete process, see `respaced_steps`; leave num_evaluations at its default or
            at their number.
    """

    def __init__(self, num_evaluations: int = 250, *, respacing: Respacing | None = None):
        super().__init__(num_evaluations=num_evaluations)
        if respacing is not None:
            name = type(self).__name__
            what = f"{name}.respacing = {respacing!r}"
            counts = _parse(respacing, what)
            total = counts if isinstance(counts, int) else sum(counts)
            if num_evaluations not in (250, total):
                other = f"{name}.num_evaluations = {num_evaluations}"
                raise ValueError(f"{what} takes {total} evaluations, {other}: set one of the two")
            self.num_evaluations = total
        self.respacing = respacing if respacing is None or isinstance(respacing, str | int) else list(respacing)

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            self.steps(process)

    def steps(self, process: Process, start: float = 0.0, end: float = 1.0) -> list[float]:
        """The t of a discrete process's visited timesteps, from the noisiest on, and the end: 1 is the data.

        Raises ValueError where there are fewer timesteps between start and end than evaluations, or one evaluation.
        """
        name, count, below = type(self).__name__, self.num_evaluations, process.step(end)
        available = process.step(start) - below
        if count > available:
            limit = f"{type(process).__name__}.num_timesteps = {available}"
            if available < process.num_timesteps:
                limit = f"there are {available} timesteps from start = {start} to end = {end}"
            raise ValueError(
                f"{name} takes {count} evaluations, but {limit}: set {name}.num_evaluations to {available} or less"
            )
        visited = [below + k for k in respaced_steps(available, count if self.respacing is None else self.respacing)]
        if len(visited) == 1:
            raise ValueError(f"{name} in one evaluation would visit timestep {visited[0]} alone: take at least 2")
        return [process.time(k + 1) for k in reversed(visited)] + [process.time(below)]


def respaced_steps(num_timesteps: int, respacing: Respacing) -> list[int]:
    """The visited ones of the timesteps 0 ... num_timesteps - 1, ascending (Nichol & Dhariwal, arXiv 2102.09672).

    Args:
        respacing: a count, 250 or "250": that number at even distances from the first to the last timestep, rounded.
            [10, 15, 20] or "10,15,20": the numbers in equal sections, the later ones noisier (a remainder goes to the
            first sections; a count of 1 takes a section's first). "ddim25": every s-th from 0 on, with the integer s
            that gives 25 (Song et al., arXiv 2010.02502).

    Raises:
        ValueError: something else, a count below 1 or above the section's size, or no such stride.
    """
    what = f"respacing = {respacing!r}"
    counts = _parse(respacing, what)
    if isinstance(counts, int):
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == counts:
                return list(range(0, num_timesteps, stride))
        raise ValueError(f"{what}: no integer stride through {num_timesteps} timesteps takes {counts} of them")
    size, extra = divmod(num_timesteps, len(counts))
    steps, start = [], 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        if count > section:
            raise ValueError(f"{what}: section {i} has {section} of the {num_timesteps} timesteps, not {count}")
        stride, position = (section - 1) / max(count - 1, 1), 0.0
        for _ in range(count):  # added up, not multiplied: ties are rounded as in the published respacing
            steps.append(start + round(position))
            position += stride
        start += section
    return steps


def _parse(respacing: Respacing, what: str) -> int | list[int]:
    """The count of "ddimN", or the list of counts per section."""
    if isinstance(respacing, str) and (ddim := re.fullmatch(r"ddim(\d+)", respacing.strip())):
        counts = int(ddim[1])
    elif isinstance(respacing, str) and re.fullmatch(r"\d+(\s*,\s*\d+)*", respacing.strip()):
        counts = [int(count) for count in respacing.split(",")]
    elif isinstance(respacing, int) and not isinstance(respacing, bool):
        counts = [respacing]
    elif isinstance(respacing, Sequence) and respacing and all(type(count) is int for count in respacing):
        counts = list(respacing)
    else:
        raise ValueError(f"{what}: it is a count, counts per section as a list or '10,10,20', or 'ddim25'")
    if min([counts] if isinstance(counts, int) else counts) < 1:
        raise ValueError(f"{what}: every count is at least 1")
    return counts
