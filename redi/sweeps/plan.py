"""What a sweep will do: every point parsed and checked before anything starts, and who shares a trained model."""

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
class Planned:
    """A point that parses."""

    name: str
    group: str
    bindings: dict[str, str]
    text: str  # its whole configuration
    model: str  # the folder in models/ that it shares with the points that are trained alike
    num_steps: int
    plug_ins: dict[str, str | None] = field(default_factory=dict)  # that it uses, see `redi.core.plug_ins`

    def folder(self, run_dir: Path) -> Path:
        return run_dir / "points" / self.name

    def trained_dir(self, run_dir: Path) -> Path:
        return run_dir / "models" / self.model

    def forget_outcome(self, run_dir: Path) -> None:
        """Delete what an earlier try left of how the point ended, so that it cannot pass for the next one's."""
        for name in ("error.txt", "result.json"):
            (self.folder(run_dir) / name).unlink(missing_ok=True)

    def is_trained(self, run_dir: Path) -> bool:
        folder = self.trained_dir(run_dir)
        return checkpoint_dir(folder, self.num_steps).exists() or ended_early(folder)


def plan(run_dir: Path, base: str, *, grid: Any, points: Any, names: Any) -> list[Planned]:
    """Parse every point over the configuration `base`; gin's current configuration is kept.

    Raises:
        ValueError: as `expand`; a point that does not parse or has a binding without effect; a folder in `run_dir`
            that holds results of another configuration.
    """
    expanded = expand(grid, points, names)
    planned, models = [], {}
    with config.isolated():
        for point, stored in zip(expanded, _stored_ranks(base, expanded), strict=True):
            _parse(base, point, stored)
            text = config.full_text()
            statements = _decide_training(text)
            key = json.dumps(statements, sort_keys=True)
            if key not in models:
                models[key] = _model_name(point, statements, set(models.values()))
            steps, code = setting(train, "num_steps"), config.plug_ins_of(_roots())
            entry = Planned(point.name, point.group, dict(point.bindings), text, models[key], steps, code)
            _refuse_mixed(run_dir, entry)
            planned.append(entry)
    return planned


def write_plan(run_dir: Path, planned: Sequence[Planned], keys: Iterable[str] = ()) -> None:
    """Write `run_dir/sweep.json`; `keys`: in the order of the sweep file, which stays, as gin sorts them."""
    axes = sorted(dict.fromkeys([*keys, *(key for entry in planned for key in entry.bindings)]), key=is_seed)
    known = read_plan(Folder(run_dir))[0]
    axes = known if set(known) == set(axes) else axes
    points = [{"name": p.name, "bindings": p.bindings, "model": p.model, "group": p.group} for p in planned]
    write_json(run_dir / "sweep.json", {"name": run_dir.resolve().name, "axes": axes, "points": points})


def _parse(base: str, point: Point, stored: dict[str, int]) -> None:
    bindings = [f"{key} = {value}" for key, value in [*point.bindings.items(), *stored.items()]]
    try:
        config.parse([], [base, *bindings])
    except ValueError as error:
        raise ValueError(f"point {point.name} of the sweep: {error}") from None
    canonical = {key: config.canonical(key) for key in point.bindings}
    if twice := [key for key, own in canonical.items() if list(canonical.values()).count(own) > 1]:
        raise ValueError(
            f"point {point.name} of the sweep binds {' and '.join(twice)}, which are one and the same: leave it in once"
        )
    unused = {*config.without_effect(_roots()), *(key for key in canonical.values() if key.startswith("sweep."))}
    if idle := [key for key, own in canonical.items() if own in unused]:
        raise ValueError(
            f"point {point.name} of the sweep binds {', '.join(idle)} without effect, for nothing in use refers to it: "
            "drop it, or bind the component that it belongs to as well"
        )


def _roots() -> list[Callable]:
    """What a point calls."""
    return [*training_entry_points, sample, evaluate, report]


def _decide_training(text: str) -> dict[str, str]:
    """The statements that decide which model is trained: also its length and its weights, which a run may change."""
    statements, idle = config.statements(text), set(config.without_effect(training_entry_points))
    decisive = config.relevant(text, training_entry_points)
    for key in [STEPS, *(key for key in statements if key.endswith(".weights") and key not in idle)]:
        decisive |= _followed(statements, key)
    return decisive


def _followed(statements: dict[str, str], key: str) -> dict[str, str]:
    """A statement, and those of the macros that its value is."""
    value = statements.get(key, "(not bound)")
    return {key: value} | (_followed(statements, value[1:]) if value.startswith("%") else {})


def _stored_ranks(base: str, points: Sequence[Point]) -> list[dict[str, int]]:
    """For each point the largest rank of those that differ from it in rank alone, as the rank to store: they share
    a cache then. Not where the sweep file says what is stored.
    """
    config.parse([], [base])
    bound = {config.canonical(key) for key in config.statements(base) if key.endswith(".store_rank")}
    found = []
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
        found.append(stored)
    return found


def _model_name(point: Point, statements: dict[str, str], taken: set[str]) -> str:
    name = point.label([key for key in point.bindings if config.canonical(key) in statements]) or "model"
    names = chain([name], (shortened(f"{name}-{number}") for number in count(2)))
    return next(name for name in names if name not in taken)


def _refuse_mixed(run_dir: Path, entry: Planned) -> None:
    """Raise ValueError where the point's folders hold work of another configuration than the one parsed."""
    folder, trained_dir = entry.folder(run_dir), entry.trained_dir(run_dir)
    if any((folder / name).exists() for name in ("result.json", "samples", "metrics.json")):
        _refuse(folder, _roots(), f"delete {folder} to do the point anew")
        _refuse_other_images(folder, trained_dir)
    if list_checkpoints(trained_dir):
        _refuse(trained_dir, training_entry_points, f"delete {trained_dir} to train anew")


def _refuse_other_images(folder: Path, trained_dir: Path) -> None:
    """Raise ValueError where data sets of a point with results were bound anew, and other images lie there."""
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
        what = "holds results of other images than those that are bound now"
        raise ValueError(f"{folder} {what}: choose another --run_dir, or delete {folder} to do the point anew")


def _refuse(folder: Path, roots: Sequence, advice: str) -> None:
    path = folder / "config.gin"
    if not path.exists():
        raise ValueError(f"{folder} holds results without the config.gin that they were made with: {advice}")
    saved = path.read_text()
    differences = config.conflicts(saved, roots)
    old, new = (_followed(config.statements(text), STEPS) for text in (saved, config.full_text()))
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    differences += [f"{key}: {old.get(key, '(not bound)')} -> {new.get(key, '(not bound)')}" for key in changed]
    if differences:
        lines = "\n  ".join(["", *differences])
        raise ValueError(f"{folder} holds another configuration:{lines}\nChoose another --run_dir, or {advice}")
