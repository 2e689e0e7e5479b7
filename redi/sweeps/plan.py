"""Plan a sweep: parse and check every point before anything starts, and find the points that share a trained model."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from redi.core import config
from redi.core.registry import training_entry_points
from redi.data.storage.contents import same_images
from redi.evaluation.evaluate import evaluate
from redi.evaluation.records import read_metrics
from redi.evaluation.samples.sample import sample
from redi.pages.files import Folder
from redi.pages.report import report
from redi.pages.sweep_results import read_plan
from redi.runs.checks import setting
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import checkpoint_dir, ended_early, list_checkpoints, newest_record
from redi.sweeps.points import Point, expand, is_seed, shortened
from redi.training.trainer import train

STEPS = "train.num_steps"


@dataclass(frozen=True)
class PlannedPoint:
    """A point whose configuration has been parsed and checked."""

    name: str
    group: str
    bindings: dict[str, str]
    text: str  # the whole configuration
    model: str  # folder in models/, shared by all points with the same training
    num_steps: int
    plug_ins: dict[str, str | None] = field(default_factory=dict)  # plug-ins in use, see `redi.core.plug_ins`

    def folder(self, run_dir: Path) -> Path:
        """Return the folder of the point's results."""
        return run_dir / "points" / self.name

    def trained_dir(self, run_dir: Path) -> Path:
        """Return the folder of the point's model."""
        return run_dir / "models" / self.model

    def forget_outcome(self, run_dir: Path) -> None:
        """Delete the result or error of an earlier attempt."""
        for name in ("error.txt", "result.json"):
            (self.folder(run_dir) / name).unlink(missing_ok=True)

    def is_trained(self, run_dir: Path) -> bool:
        """Return whether the training of the point's model has finished."""
        folder = self.trained_dir(run_dir)
        return checkpoint_dir(folder, self.num_steps).exists() or ended_early(folder)


def plan(run_dir: Path, base: str, *, grid: Any, points: Any, names: Any) -> list[PlannedPoint]:
    """Parse every point on top of the configuration `base`. gin's current configuration is kept.

    Raises ValueError: see `expand`; a point does not parse or has an unused binding; a folder in `run_dir` holds
    results of another configuration.
    """
    expanded = expand(grid, points, names)
    planned: list[PlannedPoint] = []
    models: dict[str, str] = {}
    with config.isolated():
        for point, stored in zip(expanded, _stored_ranks(base, expanded), strict=True):
            _parse(base, point, stored)
            text = config.full_text()
            statements = _training_statements(text)
            key = json.dumps(statements, sort_keys=True)
            if key not in models:
                models[key] = _model_name(point, statements, set(models.values()))
            steps, plug_ins = setting(train, "num_steps"), config.plug_ins_of(_roots())
            entry = PlannedPoint(point.name, point.group, dict(point.bindings), text, models[key], steps, plug_ins)
            _refuse_mixed(run_dir, entry)
            planned.append(entry)
    return planned


def write_plan(
    run_dir: Path, planned: Sequence[PlannedPoint], keys: Iterable[str] = (), baseline: str | None = None
) -> None:
    """Write `run_dir/sweep.json`. Axes are in the order of an existing plan, or of `keys`."""
    axes = sorted(dict.fromkeys([*keys, *(key for entry in planned for key in entry.bindings)]), key=is_seed)
    stored = read_plan(Folder(run_dir))[0]
    axes = stored if set(stored) == set(axes) else axes
    points = [{"name": p.name, "bindings": p.bindings, "model": p.model, "group": p.group} for p in planned]
    plan = {"name": run_dir.resolve().name, "axes": axes, "points": points}
    write_json(run_dir / "sweep.json", plan | ({"baseline": baseline} if baseline else {}))


def _parse(base: str, point: Point, stored: dict[str, int]) -> None:
    bindings = [f"{key} = {value}" for key, value in [*point.bindings.items(), *stored.items()]]
    try:
        config.parse([], [base, *bindings])
    except ValueError as error:
        raise ValueError(f"point {point.name} of the sweep: {error}") from None
    canonical = {key: config.canonical(key) for key in point.bindings}
    if repeated := [key for key, name in canonical.items() if list(canonical.values()).count(name) > 1]:
        names = " and ".join(repeated)
        raise ValueError(f"point {point.name} of the sweep binds {names}, which are the same binding: keep one")
    unused = {*config.without_effect(_roots()), *(key for key in canonical.values() if key.startswith("sweep."))}
    if keys := [key for key, name in canonical.items() if name in unused]:
        raise ValueError(
            f"point {point.name} of the sweep has unused bindings: no component in use refers to {', '.join(keys)}. "
            "Drop them, or bind the components that they belong to"
        )


def _roots() -> list[Callable]:
    """Return the functions that a point calls."""
    return [*training_entry_points, sample, evaluate, report]


def _training_statements(text: str) -> dict[str, str]:
    """Return the statements that affect training, including its length and initial weights."""
    statements, unused = config.statements(text), set(config.without_effect(training_entry_points))
    relevant = config.relevant(text, training_entry_points)
    for key in [STEPS, *(key for key in statements if key.endswith(".weights") and key not in unused)]:
        relevant |= _with_macros(statements, key)
    return relevant


def _with_macros(statements: dict[str, str], key: str) -> dict[str, str]:
    """Return a statement, and the statements of the macros that it refers to."""
    value = statements.get(key, "(not bound)")
    return {key: value} | (_with_macros(statements, value[1:]) if value.startswith("%") else {})


def _stored_ranks(base: str, points: Sequence[Point]) -> list[dict[str, int]]:
    """Return {store_rank binding: largest rank} of points that differ only in rank, so that they share one cache."""
    config.parse([], [base])
    bound = {config.canonical(key) for key in config.statements(base) if key.endswith(".store_rank")}
    store_ranks = []
    for point in points:
        stored = {}
        for key in point.bindings:
            store = f"{key.removesuffix('.rank')}.store_rank"
            others = {other: value for other, value in point.bindings.items() if other != key}
            if not key.endswith(".rank") or not config.bindable(store):
                continue
            if config.canonical(store) in bound or store in others:
                continue
            alike = [p.bindings for p in points if {**others, key: p.bindings.get(key)} == dict(p.bindings)]
            ranks = [int(bindings[key]) for bindings in alike if re.fullmatch(r"\d+", bindings[key])]
            if len(ranks) > 1:
                stored[store] = max(ranks)
        store_ranks.append(stored)
    return store_ranks


def _model_name(point: Point, statements: dict[str, str], taken: set[str]) -> str:
    name = point.label([key for key in point.bindings if config.canonical(key) in statements]) or "model"
    names = chain([name], (shortened(f"{name}-{number}") for number in count(2)))
    return next(name for name in names if name not in taken)


def _refuse_mixed(run_dir: Path, entry: PlannedPoint) -> None:
    """Raise ValueError if the point's folders hold results of another configuration than the parsed one."""
    folder, trained_dir = entry.folder(run_dir), entry.trained_dir(run_dir)
    if any((folder / name).exists() for name in ("result.json", "samples", "metrics.json")):
        _refuse(folder, _roots(), f"delete {folder} to run the point again")
        _refuse_other_images(folder, trained_dir)
    if list_checkpoints(trained_dir):
        _refuse(trained_dir, training_entry_points, f"delete {trained_dir} to train again")


def _refuse_other_images(folder: Path, trained_dir: Path) -> None:
    """Raise ValueError if a point has results and its data sets were bound to different images since."""
    saved = (folder / "config.gin").read_text()
    if config.relevant(saved, _roots()) == config.relevant(config.full_text(), _roots()):
        return
    record, path, same = newest_record(trained_dir), folder / "metrics.json", True
    if "dataset" in record:
        data, contents = config.bound("train.dataset"), record.get("dataset_contents")
        same = same_images(data, record["dataset"], contents) is not False
    if (measured := read_metrics(path) if path.exists() else []) and config.is_bound("evaluate.reference"):
        same &= config.bound("evaluate.reference").fingerprint() == measured[0]["reference"]["sha256"]
    if not same:
        advice = f"choose another --run_dir, or delete {folder} to run the point again"
        raise ValueError(f"{folder} holds results for other images than the data sets bound now: {advice}")


def _refuse(folder: Path, roots: Sequence, advice: str) -> None:
    path = folder / "config.gin"
    if not path.exists():
        raise ValueError(f"{folder} holds results but no config.gin to compare with: {advice}")
    saved = path.read_text()
    differences = config.conflicts(saved, roots)
    old, new = (_with_macros(config.statements(text), STEPS) for text in (saved, config.full_text()))
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    differences += [f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}" for key in changed]
    if differences:
        lines = "\n  ".join(["", *differences])
        raise ValueError(f"{folder} holds another configuration:{lines}\nChoose another --run_dir, or {advice}")
