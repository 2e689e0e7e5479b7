"""What a sweep has so far, read point by point."""

import ast
import re
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from redi.pages.files import Folder
from redi.pages.markup import is_number


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
    seconds: dict[str, float] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """None where it was not measured or is no finite number."""
        value = self.metrics.get(metric, {}).get("value")
        return value if is_number(value) else None


@dataclass
class Group:
    """Points that differ in their seeds alone."""

    name: str
    points: list[Point]

    @property
    def bindings(self) -> dict[str, str]:
        return self.points[0].bindings

    def values(self, metric: str) -> list[float]:
        """Of the points that have it."""
        return [value for point in self.points if (value := point.value(metric)) is not None]

    def mean(self, metric: str) -> float | None:
        """Over the seeds."""
        return statistics.fmean(values) if (values := self.values(metric)) else None

    def spread(self, metric: str) -> float | None:
        """The sample standard deviation over trained seeds; with one of them that over its sampling seeds, if known."""
        if len(values := self.values(metric)) > 1:
            return statistics.stdev(values)
        found = [point.metrics[metric].get("spread") for point in self.points if point.value(metric) is not None]
        return found[0] if found and is_number(found[0]) else None


class SweepResults:
    """A sweep's folder: the points in their order, with what each has come to.

    Attributes:
        folder: with the notes of what could not be read.
        axes: the swept keys.
        points: all of them.
    """

    def __init__(self, path: Path):
        self.folder = Folder(path)
        description = self.folder.json("sweep.json") or {}
        entries = description.get("points")
        self.points = [_point(entry) for entry in entries if _is_point(entry)] if isinstance(entries, list) else []
        if not self.points:
            self.folder.notes.append("sweep.json names no points.")
        axes = description.get("axes")
        keys = [str(axis) for axis in axes] if isinstance(axes, list) else []
        self.axes = keys or list(dict.fromkeys(key for point in self.points for key in point.bindings))
        for point in self.points:
            self._read(point)

    def _read(self, point: Point) -> None:
        place = f"points/{point.name}"
        seen = len(self.folder.notes)
        result = self.folder.json(f"{place}/result.json")
        if len(self.folder.notes) > seen:
            point.status = "damaged"
            point.error = f"{self.folder.notes[-1]} Delete it and run the sweep again."
        elif result is not None:
            point.status = str(result.get("status", "done"))
            found = result.get("metrics")
            for metric in found if isinstance(found, list) else []:
                if isinstance(metric, dict) and "metric" in metric:
                    point.metrics[str(metric["metric"])] = metric
            seconds = result.get("seconds")
            point.seconds = {str(k): v for k, v in seconds.items() if is_number(v)} if isinstance(seconds, dict) else {}
            point.error = str(result.get("error") or "")
        elif (error := self.folder.text(f"{place}/error.txt")) is not None:
            point.status, point.error = "failed", error.strip() or "no explanation"

    @cached_property
    def groups(self) -> list[Group]:
        """In the order of their first points."""
        groups: dict[str, Group] = {}
        for point in self.points:
            groups.setdefault(point.group, Group(point.group, [])).points.append(point)
        return list(groups.values())

    @cached_property
    def has_seeds(self) -> bool:
        """Whether any group has several points."""
        return any(len(group.points) > 1 for group in self.groups)

    @cached_property
    def seed_axes(self) -> list[str]:
        """The keys in which the points of one group differ."""
        return [
            axis for axis in self.axes
            if any(len({point.bindings.get(axis) for point in group.points}) > 1 for group in self.groups)
        ]  # fmt: skip

    @cached_property
    def group_axes(self) -> list[str]:
        return [axis for axis in self.axes if axis not in self.seed_axes]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all that was measured."""
        return list(dict.fromkeys(name for point in self.points for name in point.metrics))

    def num_samples(self, metric: str) -> list[int]:
        """The numbers of samples that it was measured on, ascending; of one where points agree."""
        counts = [point.metrics[metric].get("num_samples") for point in self.points if metric in point.metrics]
        return sorted({count for count in counts if is_number(count)})

    def better(self, metric: str) -> str:
        """'lower', 'higher' or what the points say."""
        return next((str(p.metrics[metric].get("better", "")) for p in self.points if metric in p.metrics), "")


def gin_number(value: str | None) -> float | None:
    """The number that a gin text stands for, if it is one."""
    try:
        number = ast.literal_eval(value.strip()) if value else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return number if is_number(number) else None


def gin_words(value: str | None) -> str:
    """A gin text for people: @reducers.PCA() -> PCA, 'raw' -> raw."""
    text = re.sub(r"@((?:\w+/)*)(?:\w+\.)*(\w+)(?:\(\))?", r"\1\2", (value or "").strip())
    quoted = re.fullmatch(r"(['\"])([^'\"]*)\1", text)
    return quoted.group(2) if quoted else text


def short_keys(axes: list[str]) -> dict[str, str]:
    """PCA.rank -> rank, where no other key ends so."""
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    return {axis: name if list(last.values()).count(name) == 1 else axis for axis, name in last.items()}


def is_folder_name(name: object) -> bool:
    """Names of points and models are those of folders in the sweep: one that leads elsewhere is not followed."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _is_point(entry: object) -> bool:
    return isinstance(entry, dict) and is_folder_name(entry.get("name"))


def _point(entry: dict) -> Point:
    bindings = entry.get("bindings")
    return Point(
        name=entry["name"],
        group=str(entry.get("group", entry["name"])),
        model=entry["model"] if is_folder_name(entry.get("model")) else "",
        bindings={str(key): str(value) for key, value in bindings.items()} if isinstance(bindings, dict) else {},
    )
