"""Monotone curves from 0 to 1 that can be learned, and the file that holds found ones."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from redi.runtime.paths import local_path

FORMAT, FILE = "redi clock 1", "clock.json"


class Curve(nn.Module):
    """A curve t(s) on [0, 1] with t(0) = 0 and t(1) = 1, whose slope is linear between M equally spaced knots.

    Args:
        slopes: of the knots, at least 0; they are scaled to a mean slope of 1.

    Examples:
        >>> curve = Curve([0.5, 1.5])
        >>> curve.time(0.5), curve.slope(0.5), curve.time(torch.tensor([0.0, 0.5, 1.0]))
        (0.375, 1.0, tensor([0.0000, 0.3750, 1.0000]))
    """

    def __init__(self, slopes: Sequence[float] = (1.0, 1.0)):
        super().__init__()
        areas = [0.0, *accumulate((a + b) / 2 for a, b in pairwise(slopes))]  # in units of the distance of two knots
        scale = areas[-1] / (len(slopes) - 1)
        self.fixed = [slope / scale for slope in slopes], [area / areas[-1] for area in areas]

    def knots(self, s) -> Any:
        """Return the slopes and the times of the knots, two lists for a float s, two tensors (M,) for a tensor."""
        if not isinstance(s, Tensor):
            return self.fixed
        # Filled on the device: copying a list to the device would make the host wait.
        return [torch.stack([s.new_full((), value) for value in values]) for values in self.fixed]

    def time(self, s):
        """Return t(s), a float or a tensor like s."""
        (slopes, times), (knot, ahead, part, width) = self.knots(s), self._segment(s)
        return times[knot] + (slopes[knot] + part / 2 * (slopes[ahead] - slopes[knot])) * part * width

    def slope(self, s):
        """Return dt/ds, a float or a tensor like s."""
        (slopes, _), (knot, ahead, part, _) = self.knots(s), self._segment(s)
        return slopes[knot] + part * (slopes[ahead] - slopes[knot])

    def _segment(self, s):
        """Return the knot before s, the knot after it, the part of the way between them, and their distance."""
        last = self.num_knots - 1
        knot: Any = (s * last).long().clamp(0, last) if isinstance(s, Tensor) else min(int(s * last), last)
        ahead = (knot + 1).clamp(max=last) if isinstance(s, Tensor) else min(knot + 1, last)
        return knot, ahead, s * last - knot, 1 / last

    @property
    def num_knots(self) -> int:
        """M."""
        return len(self.fixed[0])


class LearnedCurve(Curve):
    """A curve with parameters, convex or concave for all their values.

    The slope m_j of knot j is softplus(theta_1) + ... + softplus(theta_j), scaled to a mean of 1; for a concave curve
    the slopes are in reverse order.

    Args:
        concave: whether the slope decreases.
        num_knots: M.
        start: rise of the slope in the beginning, as a share of the first slope.
        speed: theta is this factor times the parameter, and so is its learning rate under Adam.

    Examples:
        >>> curve = LearnedCurve(start=2.0, num_knots=3)
        >>> [round(slope, 6) for slope in curve.knots(0.0)[0]], round(curve.time(0.5), 6), curve.time(1.0)
        ([0.5, 1.0, 1.5], 0.375, 1.0)
    """

    def __init__(self, *, concave: bool = False, num_knots: int = 16, start: float = 0.1, speed: float = 30.0):
        super().__init__([1.0] * num_knots)
        self.concave, self.speed = concave, speed
        rises = [1.0] + [start / (num_knots - 1)] * (num_knots - 1)
        theta = torch.tensor([math.log(math.expm1(rise)) for rise in rises])  # the inverse of softplus
        self.raw = nn.Parameter(theta / speed)

    def knots(self, s) -> Any:
        dtype = s.dtype if isinstance(s, Tensor) else torch.float64
        raw = self.raw if isinstance(s, Tensor) else self.raw.detach()
        slopes = functional.softplus(self.speed * raw.to(dtype)).cumsum(0)
        slopes = slopes.flip(0) if self.concave else slopes
        areas = functional.pad(((slopes[1:] + slopes[:-1]) / 2).cumsum(0), (1, 0))
        both = slopes * (self.num_knots - 1) / areas[-1], areas / areas[-1]
        return both if isinstance(s, Tensor) else [values.tolist() for values in both]


class Curves(nn.ModuleDict):
    """The learned curves of a clock by group. They move in every `every`-th step, in which the network rests.

    Examples:
        >>> [step for step in range(6) if Curves({"image": LearnedCurve()}, every=3).moves(step)]
        [2, 5]
    """

    def __init__(self, curves: Mapping[str, LearnedCurve], every: int):
        super().__init__(curves)
        self.every = every

    def moves(self, step: int) -> bool:
        """Return whether the curves move in this step, counted from 0."""
        return step % self.every == self.every - 1


def record_of(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Return the content of `clock.json`: its format, and the slopes of the knots of every group."""
    return {"format": FORMAT, "groups": {name: curve.knots(0.0)[0] for name, curve in curves.items()}}


def read_curves(path: str | Path | Mapping) -> dict[str, Curve]:
    """Read `clock.json`, or that of a run folder; return {group: curve}. Raises ValueError, naming `Learned.path`.

    A mapping is the content of the file.
    """
    if isinstance(path, Mapping):
        return _checked(path, "clocks.Learned.path = {...}: it")
    what, file = f"clocks.Learned.path = {str(path)!r}", local_path(path)
    file = file / FILE if file.is_dir() else file
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        advice = f"pass the folder of a probe (levers/clock_probe.gin), whose checkpoints write {FILE}"
        raise ValueError(f"{what}: there is no {file}; {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {file} is not readable JSON ({error}); copy it from the probe again") from None
    return _checked(record, f"{what}: {file}")


def _checked(record: Any, what: str) -> dict[str, Curve]:
    groups = record.get("groups") if isinstance(record, Mapping) and record.get("format") == FORMAT else None
    if not isinstance(groups, Mapping) or not all(map(_sound, groups.values())):
        rule = "{group: at least two slopes, finite, not negative and not all 0}"
        raise ValueError(f"{what} must have the format {FORMAT!r} and groups {rule}; take that of a probe")
    return {name: Curve(slopes) for name, slopes in groups.items()}


def _sound(slopes: Any) -> bool:
    numbers = isinstance(slopes, list) and all(type(slope) in (int, float) and 0 <= slope < 1e6 for slope in slopes)
    return numbers and len(slopes) > 1 and sum(slopes) > 0
