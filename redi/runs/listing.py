"""List the runs in a folder with their status, and compare the configurations of two runs."""

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from redi.core import config
from redi.evaluation.records import read_metrics
from redi.evaluation.samples.stored import Samples
from redi.runtime.atomic import is_held
from redi.runtime.checkpoint import list_checkpoints, step_of
from redi.runtime.checksums import BrokenArtefact
from redi.training.trainer import train


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of runs and sweep points in `folder`, itself included. Raises ValueError: there are none."""
    runs = sorted(path.parent for path in folder.rglob("config.gin") if not (path.parent / "sweep.json").exists())
    if not runs:
        raise ValueError(f"{folder} holds no runs (no config.gin in it or below): pass another folder")
    return runs


def list_runs(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield (name, status, 'step of total', main metric, MiB, time of the last change) of every run in a folder."""
    for run in run_folders(folder):
        num_steps, samples = _num_steps(run), _samples(run)
        # A sweep point has samples of a checkpoint, but no checkpoints of its own.
        step = max([samples.get("checkpoint_step", 0), *map(step_of, list_checkpoints(run))])
        files = [*_stats(run)]
        changed = datetime.fromtimestamp(max((file.st_mtime for file in files), default=0))
        size = sum(file.st_size for file in files) / 2**20
        status = _status(run, step, finished=step >= num_steps)
        name, steps = str(run.relative_to(folder.parent)), f"{step:,} of {num_steps:,}"
        yield name, status, steps, _metric(run / "metrics.json", samples), f"{size:,.1f}", f"{changed:%Y-%m-%d %H:%M}"


def differences(first: Path, second: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (binding, value in the first run, value in the second) where they differ; '-' for an unbound name."""
    one, other = (_statements(run) for run in (first, second))
    for key in sorted(one | other):
        if one.get(key) != other.get(key):
            yield key, one.get(key, "-"), other.get(key, "-")


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of text as an aligned table."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _statements(run: Path) -> dict[str, str]:
    if not (path := run / "config.gin").exists():
        raise ValueError(f"{run} holds no run: it has no config.gin. Pass the folder of a run")
    # Without imports, which gin numbers differently in every file.
    return {key: value for key, value in config.statements(path.read_text()).items() if value}


def _num_steps(run: Path) -> int:
    bound = _statements(run)
    text = bound.get("train.num_steps", str(inspect.signature(train).parameters["num_steps"].default))
    while text.startswith("%"):  # a macro
        text = bound.pop(text[1:], "0")
    return int(text) if text.isdigit() else 0


def _stats(run: Path) -> Iterator[os.stat_result]:
    for path in run.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running process renamed or deleted it
            if path.is_file():
                yield path.stat()


def _status(run: Path, step: int, finished: bool) -> str:
    if is_held(run):
        return "running"
    if (run / "error.txt").exists():  # written by sweep points
        return "failed"
    if finished or (run / "result.json").exists():
        return "finished"
    return "stopped" if step else "not trained"


def _samples(run: Path) -> dict:
    try:
        return Samples(run / "samples").record
    except (FileNotFoundError, BrokenArtefact):
        return {}


def _metric(path: Path, samples: dict) -> str:
    try:
        first = read_metrics(path)[0]
    except (FileNotFoundError, IndexError):
        return "-"
    except BrokenArtefact:
        return "damaged"
    if samples and first.get("samples", {}).get("samples_sha256") != samples["samples_sha256"]:
        return "outdated"
    return f"{first['metric']} {first['value']:.4g}"
