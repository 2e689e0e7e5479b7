"""Respacing: the timesteps of a discrete process that a sampler visits."""

import re
from collections.abc import Sequence

from redi.core.processes import Process
from redi.core.samplers import Sampler

Respacing = str | int | Sequence[int]


class Respaced(Sampler):
    """A sampler that may skip timesteps of a discrete process.

    Args:
        num_evaluations: network evaluations, one per step, evenly spaced over the timesteps.
        respacing: other timesteps, see `respaced_steps`. They determine num_evaluations, which need not be set.

    Examples:
        >>> from redi.core.processes import DDPM
        >>> from redi.core.samplers import DDIM
        >>> times = DDIM(num_evaluations=4).steps(DDPM(num_timesteps=1000))
        >>> [round(t, 3) for t in times]  # the visited t, then the data
        [0.0, 0.333, 0.666, 0.999, 1.0]
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
                raise ValueError(f"{what} means {total} evaluations, but {other}: set only one of the two")
            self.num_evaluations = total
        self.respacing = respacing if respacing is None or isinstance(respacing, str | int) else list(respacing)

    def check(self, process: Process) -> None:
        if process.num_timesteps is not None:
            self.steps(process)

    def steps(self, process: Process, start: float = 0.0, end: float = 1.0) -> list[float]:
        """Return the visited t, the noisiest first, followed by the t of `end` (1 is the data).

        Raises ValueError if there are fewer timesteps between start and end than evaluations, or only one evaluation.
        """
        name, count, last = type(self).__name__, self.num_evaluations, process.step(end)
        available = process.step(start) - last
        if count > available:
            limit = f"{type(process).__name__}.num_timesteps = {available}"
            if available < process.num_timesteps:
                limit = f"there are {available} timesteps from start = {start} to end = {end}"
            setting = f"{name}.num_evaluations"
            raise ValueError(f"{setting} = {count}, but {limit}: set {setting} to at most {available}")
        visited = [last + k for k in respaced_steps(available, count if self.respacing is None else self.respacing)]
        if len(visited) == 1:
            raise ValueError(f"{name}.num_evaluations = 1 visits timestep {visited[0]} alone: must be at least 2")
        return [process.time(k + 1) for k in reversed(visited)] + [process.time(last)]


def respaced_steps(num_timesteps: int, respacing: Respacing) -> list[int]:
    """Return the visited timesteps among 0 ... num_timesteps - 1, ascending (Nichol & Dhariwal, arXiv 2102.09672).

    Args:
        respacing: one of

            - 250 or "250": this number of timesteps, evenly spaced from the first to the last and rounded.
            - [10, 15, 20] or "10,15,20": counts in equal sections, from the least to the most noise. A remainder of the
              division goes to the first sections. A count of 1 takes the first timestep of its section.
            - "ddim25": every s-th timestep from 0, with the integer stride s that gives 25 (Song et al., arXiv
              2010.02502).

    Raises:
        ValueError: another form, a count below 1 or above the size of its section, or no such stride.

    Examples:
        >>> respaced_steps(100, 5), respaced_steps(100, "ddim5"), respaced_steps(100, [3, 2])
        ([0, 25, 50, 74, 99], [0, 20, 40, 60, 80], [0, 24, 49, 50, 99])
    """
    what = f"respacing = {respacing!r}"
    counts = _parse(respacing, what)
    if isinstance(counts, int):
        for stride in range(1, num_timesteps + 1):
            if len(range(0, num_timesteps, stride)) == counts:
                return list(range(0, num_timesteps, stride))
        raise ValueError(f"{what}: no integer stride visits {counts} of {num_timesteps} timesteps: set another count")
    size, extra = divmod(num_timesteps, len(counts))
    steps, start = [], 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        if count > section:
            raise ValueError(f"{what}: section {i} has only {section} of the {num_timesteps} timesteps, not {count}")
        spacing, position = (section - 1) / max(count - 1, 1), 0.0
        for _ in range(count):  # a running sum, not a product, so that ties are rounded as in the published code
            steps.append(start + round(position))
            position += spacing
        start += section
    return steps


def _parse(respacing: Respacing, what: str) -> int | list[int]:
    """Return the count of "ddimN", or the list of counts per section."""
    counts: int | list[int]
    if isinstance(respacing, str) and (ddim := re.fullmatch(r"ddim(\d+)", respacing.strip())):
        counts = int(ddim[1])
    elif isinstance(respacing, str) and re.fullmatch(r"\d+(\s*,\s*\d+)*", respacing.strip()):
        counts = [int(count) for count in respacing.split(",")]
    elif isinstance(respacing, int) and not isinstance(respacing, bool):
        counts = [respacing]
    elif isinstance(respacing, Sequence) and respacing and all(type(count) is int for count in respacing):
        counts = [int(count) for count in respacing]
    else:
        raise ValueError(f"{what}: must be a count, counts per section such as [10, 10, 20] or '10,10,20', or 'ddim25'")
    if min([counts] if isinstance(counts, int) else counts) < 1:
        raise ValueError(f"{what}: every count must be at least 1")
    return counts
