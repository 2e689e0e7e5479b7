"""Reference curves: the losses of a preset over its steps, from several seeds, to draw a run against."""

import json
from pathlib import Path
from typing import NamedTuple

from redi.pages.plots import Panel, Series
from redi.pages.wording import is_number, number
from redi.runtime.paths import local_path


class ReferenceCurve(NamedTuple):
    """The content of a file of `experiments/curves/make.py`. A loss is a mean over the steps since the one before."""

    preset: str
    images: str | None  # SHA-256 of the training images
    steps: list[int]
    losses: dict[str, list[tuple[float, ...]]]  # {channel group: for each seed, a loss at each step}


def read_curve(name: str | Path | None) -> ReferenceCurve | None:
    """Read a curve, searched in the current folder, then among the shipped ones; None without a name.

    Raises ValueError: the file does not exist or is malformed.
    """
    if name is None:
        return None
    package = Path(__file__).resolve().parents[1]
    shipped = [package / "curves", package.parent / "experiments" / "curves"]  # installed, or in a checkout
    paths = [path for folder in (Path(), *shipped) if (path := folder / local_path(name)).is_file()]
    advice = "correct the name, or write the file by experiments/curves/make.py"
    if not paths:
        names = ", ".join(sorted(path.name for folder in shipped for path in folder.glob("*.jsonl"))) or "none"
        where = f"must be a file in the current folder or a shipped curve ({names})"
        raise ValueError(f"report.curve = {str(name)!r}: {where}; {advice}")
    try:
        about, *lines = map(json.loads, paths[0].read_text(encoding="utf-8").splitlines())
        steps = [line.pop("step") for line in lines]
        losses = {group: list(zip(*(line[group] for line in lines), strict=True)) for group in lines[0]}
        values = [value for seeds in losses.values() for of_seed in seeds for value in of_seed]
        if {len(seeds) for seeds in losses.values()} != {len(about["seeds"])} or not all(
            map(is_number, steps + values)
        ):
            raise ValueError("a step does not have a number for each group and seed")
        return ReferenceCurve(str(about["preset"]), about.get("images"), steps, losses)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        what = f"{paths[0]} must be a complete reference curve ({error or type(error).__name__})"
        raise ValueError(f"report.curve = {str(name)!r}: {what}; {advice}") from None


def reference_panels(curve: ReferenceCurve, entries: list[dict], images: str | None = None) -> list[Panel]:
    """Return a panel for each channel group that the curve and the log of the run, `entries`, have in common.

    If `images`, the SHA-256 of the run's training images, are other ones, the legend says so.
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
