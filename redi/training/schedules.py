"""Learning-rate schedules, and their registry."""

import math
from abc import ABC, abstractmethod

from redi.core.registry import Registry
from redi.runtime.ranges import check_number


class Schedule(ABC):
    """A factor for the learning rates of a step: `train.schedule = @schedules.Cosine()`.

    A component implements `__call__`. Its result depends on the step alone, so that a resumed run is bit-equal to an
    uninterrupted one. In Python any such function will do, as `lambda step: 0.5 ** (step // 10_000)`.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor for this step, which counts from 0."""


schedules = Registry("schedules", Schedule)
register = schedules.register


@register
class Constant(Schedule):
    """The same learning rate in all steps, as in ReDi (section 4.1), REPA and SFD."""

    def __call__(self, step: int) -> float:
        return 1.0


class Decay(Schedule):
    """A factor that falls from 1 to `end` and stays there.

    The length is an argument of its own, because `train.num_steps` may differ when a run is resumed: a longer run
    continues with the factor `end`, and its earlier steps remain the same.

    Args:
        num_steps: number of steps until `end`, including those of `train.warmup_steps`.
        end: last factor. A tenth, as in RAE and RAEv2, still trains in the last steps.
    """

    def __init__(self, num_steps: int, *, end: float = 0.1):
        name = type(self).__name__
        check_number(f"{name}.num_steps", num_steps)
        check_number(f"{name}.end", end, 0, whole=False, below=1, note="schedules.Constant has no decay")
        self.num_steps, self.end = num_steps, end

    def __call__(self, step: int) -> float:
        return 1.0 - (1.0 - self.end) * self.decayed(min(step / self.num_steps, 1.0))

    @abstractmethod
    def decayed(self, progress: float) -> float:
        """Return the share of the decay, from 0 to 1, that is done at this share of the steps."""


@register
class Cosine(Decay):
    """Half a cosine from 1 to `end` (Loshchilov and Hutter, arXiv 1608.03983, without restarts).

    Examples:
        >>> schedule = Cosine(100, end=0.0)
        >>> [round(schedule(step), 3) for step in (0, 50, 75, 100, 200)]
        [1.0, 0.5, 0.146, 0.0, 0.0]
    """

    def decayed(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


@register
class Linear(Decay):
    """A straight line from 1 to `end`."""

    def decayed(self, progress: float) -> float:
        return progress


@register
class Cooldown(Decay):
    """Constant, then a straight line to `end` over the last steps (Hägele et al., arXiv 2405.18392).

    Args:
        share: length of the line, as a share of `num_steps`. RAE: 0.95, RAEv2: 0.5.

    Examples:
        >>> schedule = Cooldown(100, end=0.0)
        >>> [round(schedule(step), 3) for step in (0, 80, 90, 100, 200)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, num_steps: int, *, end: float = 0.1, share: float = 0.2):
        super().__init__(num_steps, end=end)
        if not 0 < share <= 1:
            raise ValueError(f"Cooldown.share = {share!r}: must be greater than 0 and at most 1")
        self.share = share

    def decayed(self, progress: float) -> float:
        return max(0.0, 1.0 - (1.0 - progress) / self.share)
