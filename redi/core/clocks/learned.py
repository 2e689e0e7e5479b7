"""Curves that a probe learns, and that other runs then train under."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from redi.core.channels import Channels
from redi.core.clocks import Clock, register
from redi.core.curves import FILE, Curve, Curves, LearnedCurve, read_curves, record_of
from redi.runtime.ranges import check_choice, check_number

Shape = Literal["convex", "concave", "identity"]


@register
class Learned(Clock):
    """Curves t(s) of a flexible class that are learned with the network (LWD, arXiv 2606.19662).

    Without a path, the run is a probe: it learns the curves, and every checkpoint writes them to `clock.json` in the
    run folder. With a path, a run trains and samples under these curves, which no longer change. A learned curve is
    monotone and convex (or concave) for all parameters, see `redi.core.curves.LearnedCurve`. LWD publishes neither the
    parametrisation nor its numbers: all settings of the probe are our reading.

    Args:
        path: `clock.json` of a probe, its run folder, or the content of the file. Default: the curves are learned.
        shapes: {group: 'convex', 'concave' or 'identity'}; groups that are not named have t = s. A convex curve lags
            behind s and catches up; a concave one runs ahead. Default: {'image': 'convex'}, because only the relation
            of the groups matters, so one may be the identity, and LWD reports that the image lags.
        num_knots: number of knots of a curve; its slope is linear in between.
        start: rise of the slope from s = 0 to s = 1 in the beginning, as a share of the first slope. At 0, t = s, and
            the parameters have no gradient.
        speed: factor of the learning rate for the parameters of the curves (under Adam), which are few and far apart.
        every: the curves move in every `every`-th step, in which the network rests; in the others they rest.

    Examples:
        >>> clock = Learned(start=2.0)
        >>> [round(clock.time("image", s), 3) for s in (0.0, 0.5, 1.0)]  # slopes from 0.5 to 1.5
        [0.0, 0.375, 1.0]
        >>> clock.time("dinov2", 0.5), round(clock.slope("image", 1.0), 3)
        (0.5, 1.5)
    """

    def __init__(
        self, *, path: str | Path | Mapping | None = None, shapes: Mapping[str, Shape] | None = None,
        num_knots: int = 16, start: float = 0.1, speed: float = 30.0, every: int = 2,
    ):  # fmt: skip
        self._path, self._found = path, {} if path is None else read_curves(path)
        self._groups: tuple[str, ...] = ()
        if path is not None:
            if (shapes, num_knots, start, speed, every) != (None, 16, 0.1, 30.0, 2):
                advice = "its other arguments are those of a probe; remove them, or the path"
                raise ValueError(f"clocks.Learned.path = {str(path)!r}: must be the only argument: {advice}")
            return
        self.shapes = {"image": "convex"} if shapes is None else dict(shapes)
        for name, shape in self.shapes.items():
            check_choice(f"clocks.Learned.shapes[{name!r}]", shape, get_args(Shape))
        curved = {name: shape == "concave" for name, shape in self.shapes.items() if shape != "identity"}
        if not curved:
            raise ValueError(f"clocks.Learned.shapes = {self.shapes}: at least one group must be 'convex' or 'concave'")
        check_number("clocks.Learned.num_knots", num_knots, least=2)
        check_number("clocks.Learned.every", every, least=2, note="2: curves and network take turns")
        for name, value in {"start": start, "speed": speed}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"clocks.Learned.{name} = {value}: must be finite and greater than 0")
        self.num_knots, self.start, self.speed, self.every = num_knots, start, speed, every
        settings: dict[str, Any] = {"num_knots": num_knots, "start": start, "speed": speed}
        curves = {name: LearnedCurve(concave=concave, **settings) for name, concave in curved.items()}
        self.module = Curves(curves, every)

    @property
    def _curves(self) -> Any:
        return self._found if self.module is None else self.module

    def for_channels(self, channels: Channels) -> "Learned":
        if self._groups == tuple(channels):
            return self
        if not channels.representations:
            what = "clocks.Learned needs a representation, but the codec has only the image"
            raise ValueError(f"{what}: bind clocks.Shared")
        known = ", ".join(channels)
        if self._path is not None and set(self._curves) != set(channels):
            what = f"clocks.Learned.path = {str(self._path)!r} is a clock of {', '.join(self._curves)}"
            raise ValueError(f"{what}: must have the groups of this run ({known}); find a clock with these groups")
        if unknown := [name for name in self._curves if name not in channels]:
            raise ValueError(f"clocks.Learned.shapes names {unknown}: must be among {known}")
        bound = copy.deepcopy(self)  # another run with this clock begins where this one did
        bound._groups = tuple(channels)
        return bound

    def time(self, group: str, s):
        return self._curves[group].time(s) if group in self._curves else s

    def slope(self, group: str, s):
        return self._curves[group].slope(s) if group in self._curves else 1.0

    def shared_time(self, group: str, t: float) -> float:
        if self.module is None or group not in self._curves:
            return super().shared_time(group, t)
        fixed = copy.copy(self)  # reads the parameters once, which may be on a GPU
        fixed.module, fixed._found = None, {group: Curve(self._curves[group].knots(0.0)[0])}
        return fixed.shared_time(group, t)

    def portable(self) -> list[str]:
        return [f"clocks.Learned.path = {record_of(self._found)!r}"] if self._found else []

    def artefacts(self) -> dict[str, dict]:
        return {FILE: record_of({n: self._curves[n] if n in self._curves else Curve() for n in self._groups})}

    def provenance(self) -> dict:
        settings = super().provenance()
        settings.pop("module", None)
        return settings | (record_of(self._found) if self._found else {})
