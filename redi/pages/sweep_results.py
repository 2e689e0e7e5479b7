"""Read the results of a sweep point by point, for its tables, plots and page."""

import logging
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeGuard

from redi.pages.files import Folder
from redi.pages.wording import is_number, with_spread
from redi.runtime.checksums import BrokenArtefact, read_sealed
from redi.runtime.paths import local_path
from redi.sampling.notebook import table

log = logging.getLogger("redi")


class Difference(NamedTuple):
    """How a group differs from the baseline, over the seeds that both have."""

    mean: float
    spread: float  # sample standard deviation
    p: float  # of the paired t-test, two-sided


@dataclass
class Point:
    """One setting of the sweep. `status`: 'done', 'failed', 'damaged' or 'not run yet'."""

    name: str
    group: str
    model: str
    bindings: dict[str, str]
    status: str = "not run yet"
    error: str = ""
    metrics: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)  # stage -> duration

    def value(self, metric: str, what: str = "value") -> float | None:
        """Return a value of a metric, or None if it was not measured or is not finite."""
        value = self.metrics.get(metric, {}).get(what)
        return value if is_number(value) else None


@dataclass
class Group:
    """Points that differ only in their seeds."""

    name: str
    points: list[Point]

    @property
    def bindings(self) -> dict[str, str]:
        """The bindings of the first point."""
        return self.points[0].bindings

    @property
    def num_done(self) -> int:
        """The number of points that are done."""
        return sum(point.status == "done" for point in self.points)

    def values(self, metric: str) -> list[float]:
        """Return the values of all points in which the metric was measured."""
        return [value for point in self.points if (value := point.value(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds, or None if it was not measured."""
        return statistics.fmean(values) if (values := self.values(metric)) else None

    def spread(self, metric: str) -> float | None:
        """Return the sample standard deviation over training seeds; with a single one, over its sampling seeds."""
        if len(values := self.values(metric)) > 1:
            return statistics.stdev(values)
        return next((point.value(metric, "spread") for point in self.points if point.value(metric) is not None), None)


class SweepResults:
    """The results of a sweep: its folder, its swept keys `axes` and its points."""

    def __init__(self, path: str | Path):
        self.folder = Folder(local_path(path))
        self.axes, self.points = read_plan(self.folder)
        self.baseline = str((self.folder.json("sweep.json") or {}).get("baseline") or "")
        for point in self.points:
            self._read(point)

    def __repr__(self) -> str:
        num_done = sum(group.num_done for group in self.groups)
        return f"<SweepResults {self.folder.path}: {num_done} of {len(self.points)} points done>"

    def _repr_html_(self) -> str:
        rows = [(g.name, *(with_spread(g.mean(m), g.spread(m)) for m in self.metrics)) for g in self.groups]
        return table(rows, head=("", *self.metrics))

    def _read(self, point: Point) -> None:
        folder = self.folder.path / "points" / point.name
        if (result := read_result(folder)) is not None:
            point.status, point.seconds = "done", result.get("seconds", {})
            point.metrics = {str(entry["metric"]): entry for entry in result["metrics"]}
        elif (folder / "result.json").exists():
            note = f"points/{point.name}/result.json cannot be read, because it is truncated or altered."
            self.folder.notes.append(note)
            point.status, point.error = "damaged", f"{note} Rerun the sweep to repeat the point."
        elif (error := self.folder.text(f"points/{point.name}/error.txt")) is not None:
            point.status, point.error = "failed", error.strip() or "no error message"

    @cached_property
    def groups(self) -> list[Group]:
        """The groups, in the order of their first points."""
        names = dict.fromkeys(point.group for point in self.points)
        return [Group(name, [point for point in self.points if point.group == name]) for name in names]

    @cached_property
    def group_axes(self) -> list[str]:
        """The swept keys that have a single value in every group: all but the seeds."""
        settings = {axis: [{p.bindings.get(axis) for p in group.points} for group in self.groups] for axis in self.axes}
        return [axis for axis in self.axes if all(len(values) == 1 for values in settings[axis])]

    @cached_property
    def metrics(self) -> dict[str, str]:
        """{metric: the better direction, 'lower' or 'higher'; '' if unknown}."""
        metrics: dict[str, str] = {}
        for name, entry in (item for point in self.points for item in point.metrics.items()):
            metrics.setdefault(name, str(entry.get("better") or ""))
        return metrics

    def best(self, metric: str) -> Group | None:
        """Return the group that beats every other by more than the sum of both spreads, if there is one."""
        sign = {"lower": 1, "higher": -1}.get(self.metrics[metric], 0)
        means = [(sign * mean, group) for group in self.groups if (mean := group.mean(metric)) is not None]
        spreads = {group.name: spread for _, group in means if (spread := group.spread(metric)) is not None}
        if not sign or len(means) < 2 or len(spreads) < len(means):
            return None
        value, best = min(means, key=lambda pair: pair[0])
        others = [(other - value, spreads[group.name]) for other, group in means if group is not best]
        return best if all(gap > spreads[best.name] + spread for gap, spread in others) else None

    def difference(self, group: Group, metric: str) -> Difference | None:
        """Compare a group with the baseline; None without a baseline, or if the differences have no spread."""
        base = next((other for other in self.groups if other.name == self.baseline and other is not group), None)
        if base is None:
            return None
        ours, theirs = (
            {tuple(point.bindings.get(axis) for axis in self.axes if axis not in self.group_axes): value
             for point in each.points if (value := point.value(metric)) is not None}
            for each in (group, base)
        )  # fmt: skip
        differences = [value - theirs[seeds] for seeds, value in ours.items() if seeds in theirs]
        if len(differences) < 2 or not (spread := statistics.stdev(differences)):
            return None
        from scipy.special import stdtr  # the distribution function of Student's t

        mean, freedom = statistics.fmean(differences), len(differences) - 1
        return Difference(mean, spread, 2 * float(stdtr(freedom, -abs(mean) / spread * len(differences) ** 0.5)))

    @property
    def missing(self) -> dict[str, str]:
        """{name of a point that is not done: the reason in one line}."""
        return {p.name: p.error.partition("\n\n")[0] or "not done" for p in self.points if p.status != "done"}

    def num_samples(self, metric: str) -> list[float]:
        """Return the distinct numbers of samples of this metric, ascending."""
        counts = {point.metrics[metric].get("num_samples") for point in self.points if metric in point.metrics}
        return sorted(count for count in counts if is_number(count))


def read_plan(folder: Folder) -> tuple[list[str], list[Point]]:
    """Read the swept keys and the points of sweep.json. If it has no points, add a note."""
    plan = folder.json("sweep.json") or {}
    entries, axes = (part if isinstance(part, list) else [] for part in (plan.get("points"), plan.get("axes")))
    points = []
    for entry in entries:
        if isinstance(entry, dict) and _is_folder_name(name := entry.get("name")):
            model, bindings = entry.get("model"), entry.get("bindings")
            bindings = {key: str(value) for key, value in bindings.items()} if isinstance(bindings, dict) else {}
            points.append(Point(name, str(entry.get("group", name)), model if _is_folder_name(model) else "", bindings))
    if not points:
        folder.notes.append("sweep.json has no points.")
    return list(map(str, axes)) or list(dict.fromkeys(key for point in points for key in point.bindings)), points


def read_result(folder: Path) -> dict | None:
    """Read the result of a point; None if it is not done, or the file is damaged or of another point."""
    path = folder / "result.json"
    try:
        if (result := read_sealed(path)) is None:
            return None
        whole = all(isinstance(entry, dict) and "metric" in entry for entry in result["metrics"])
        whole = whole and isinstance(result.get("seconds", {}), dict)
        if whole and result["status"] == "done" and result["name"] == folder.name:
            return result
    except (BrokenArtefact, KeyError, TypeError, AttributeError):
        pass
    log.warning("%s is truncated or altered: the point counts as not done", path)
    return None


def _is_folder_name(name: object) -> TypeGuard[str]:
    """Return whether a name is a plain folder name, and not a path that leads out of the sweep."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
