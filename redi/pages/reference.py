"""Reference curves: the losses of a preset over its steps, from several seeds, to draw a run against."""

import json
from pathlib import Path
from typing import NamedTuple

from redi.pages.plots import Panel, Series
from redi.pages.wording import is_number, number
from redi.runtime.paths import local_path

MAKER = "experiments/curves/make.py"


class ReferenceCurve(NamedTuple):
    """The losses of each channel group: means over the steps since the step before, as in a run's `log.jsonl`."""

    preset: str
    steps: list[int]
    losses: dict[str, list[list[float]]]  # {channel group: for each seed, a loss at each step}
    images: str | None = None  # SHA-256 of the training images


def read_curve(name: str | Path | None) -> ReferenceCurve | None:
    """Read a file of `experiments/curves/make.py`; None without a name.

    Args:
        name: searched in the current folder, then among the shipped curves.

    Raises ValueError: the file does not exist or is malformed.
    """
    if name is None:
        return None
    package = Path(__file__).resolve().parents[1]
    shipped = [package / "curves", package.parent / "experiments" / "curves"]  # installed, or in a checkout
    paths = [path for folder in (Path(), *shipped) if (path := folder / local_path(name)).is_file()]
    if not paths:
        names = ", ".join(sorted(path.name for folder in shipped for path in folder.glob("*.jsonl"))) or "none"
        where = f"must be a file in the current folder or a shipped curve ({names})"
        raise ValueError(f"report.curve = {str(name)!r}: {where}; correct the name, or make it with {MAKER}")
    try:
        return _parse(paths[0].read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        what = f"{paths[0]} must be a complete reference curve ({error or type(error).__name__})"
        raise ValueError(f"report.curve = {str(name)!r}: {what}; make it again with {MAKER}") from None


def _parse(text: str) -> ReferenceCurve:
    about, *lines = (json.loads(line) for line in text.splitlines())
    steps, groups = [line.pop("step") for line in lines], list(lines[0])
    for step, line in zip(steps, lines, strict=True):
        values = [value for losses in line.values() for value in losses]
        sizes = {len(losses) for losses in line.values()}
        if list(line) != groups or sizes != {len(about["seeds"])} or not all(map(is_number, [step, *values])):
            raise ValueError(f"step {step} does not have a number for each group and seed")
    losses = {group: [[line[group][i] for line in lines] for i in range(len(about["seeds"]))] for group in groups}
    return ReferenceCurve(str(about["preset"]), steps, losses, about.get("images"))


def reference_panels(curve: ReferenceCurve, entries: list[dict], images: str | None = None) -> list[Panel]:
    """Return a panel for each channel group that is in the curve and in the log of a run, given as its entries.

    Args:
        images: SHA-256 of the run's training images. If the curve's differ, the legend says so.
    """
    panels, other = [], images is not None and curve.images not in (None, images)
    for group, seeds in curve.losses.items():
        run = {entry["step"]: entry[group] for entry in entries if group in entry}
        if len(run) < 2:
            continue
        label = f"{curve.preset}, {len(seeds)} seed{'s' * (len(seeds) > 1)}{', other images' * other}"
        series = [Series(label, curve.steps, losses, thin=True) for losses in seeds]
        title = f"loss of {group}"
        if shared := [i for i, step in enumerate(curve.steps) if step in run]:
            step, values = curve.steps[shared[-1]], [losses[shared[-1]] for losses in seeds]
            title += f": {number(run[step])} at step {step:,}, reference {number(min(values))} to {number(max(values))}"
        panels.append(Panel(title, "step", [*series, Series("this run", list(run), list(run.values()))]))
    return panels
