"""Panels of training logs: of one run, of several models, and of the convergence of a method and a baseline."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from redi.core.losses import BY_TIME
from redi.core.own_times import MEAN_TIME
from redi.core.parts import PROJECTION
from redi.evaluation.convergence import PREFIX, Curve
from redi.pages.plots import Panel, Series

RATES = {"images_per_second": "training speed, images per second", "gradient_norm": "gradient norm",
         "learning_rate": "learning rate", "skipped_steps": "skipped steps (non-finite gradient)",
         "kinetic": "kinetic energy of the clock that is learned"}  # fmt: skip


def run_panels(entries: list[dict]) -> list[Panel]:
    """Return a panel of all losses, one of the losses against t, one for each monitored metric and each rate but 0."""
    series = {name: _series(entries, name) for name in _names(entries)}
    if not any(len(curve.x) > 1 for curve in series.values()):
        return []
    monitored = [name for name in series if name.startswith(PREFIX)]
    of_clock = [name for name in series if name.startswith(MEAN_TIME)]
    projections = {name: series[name] for name in series if name.startswith(PROJECTION)}
    losses = [curve for name, curve in series.items() if name not in (*monitored, *projections, *RATES, *of_clock)]
    moved = [_series(entries, name, name.removeprefix(MEAN_TIME)) for name in of_clock]
    return [
        Panel("losses", "step", losses, y_scale="zero"),
        *([Panel("mean own time of each group, while the clock is learned", "step", moved)] if moved else []),
        *_time_panels(entries),
        *_projection_panels(projections),
        *(Panel(_title(name), "step", [series[name]], marks=True) for name in monitored),
        *(Panel(title, "step", [series[name]], y_scale="zero" if name == "images_per_second" else "auto")
          for name, title in RATES.items() if name in series and any(series[name].y)),
    ]  # fmt: skip


def schedule_panels(curves: Mapping) -> list[Panel]:
    """Return a panel of `snr_curves`, and with a clock one of own times. A ratio ends at pure noise or clean data."""
    titles = {"snr": "signal-to-noise ratio of each group, dB", "t": "own time t of each group"}
    groups = {key: [Series(name, curves["s"], y) for name, y in curves[key].items()] for key in titles if key in curves}
    axis, scales = "shared time s, from noise (0) to data (1)", {"snr": "auto", "t": "zero"}
    return [Panel(titles[key], axis, series, y_scale=scales[key]) for key, series in groups.items()]


def _time_panels(entries: list[dict]) -> list[Panel]:
    """Return a panel of the last log line's losses against the own t of each group, and of an earlier line's."""
    if not (lines := [entry for entry in entries if any(name.startswith(BY_TIME) for name in entry)]):
        return []
    curves: dict[str, dict[float, float]] = {}
    for entry in lines[-1:] + lines[len(lines) // 4 : -1][:1]:
        for name, value in entry.items():
            if match := re.fullmatch(rf"{BY_TIME}(.+)/(0\.\d+)", name):
                curves.setdefault(f"{match[1]}, step {entry['step']:,}", {})[float(match[2])] = value
    series = [Series(label, list(points), list(points.values())) for label, points in curves.items()]
    return [Panel("mean squared error against t", "t of the group, from noise (0) to data (1)", series, marks=True)]


def _projection_panels(series: Mapping[str, Series]) -> list[Panel]:
    """Return the panels of learned projections: effective rank, standard deviations, and regularisers."""
    titles = {
        "effective_rank": "effective rank of the learned channels",
        "std_": "std of the learned channels before batch norm",
        "": "regularisers of the learned projection, unweighted",
    }  # fmt: skip
    curves: dict[str, list[Series]] = {title: [] for title in titles.values()}
    for name, curve in series.items():
        group, _, value = name.removeprefix(PROJECTION).rpartition("/")
        title = next(title for start, title in titles.items() if value.startswith(start))
        label = group if value == "effective_rank" else f"{group}: {value.removeprefix('std_')}"
        curves[title].append(Series(label, curve.x, curve.y))
    return [Panel(title, "step", lines, y_scale="zero") for title, lines in curves.items() if lines]


def model_panels(logs: Mapping[str, list[dict]]) -> list[Panel]:
    """Return a panel of the loss and of every monitored metric, with a curve for each model."""
    names = dict.fromkeys(name for entries in logs.values() for name in _names(entries))
    return [
        Panel(_title(name), "step", [_series(entries, name, model) for model, entries in logs.items()])
        for name in names if name == "loss" or name.startswith(PREFIX)
    ]  # fmt: skip


def convergence_panel(*, baseline: Sequence[Curve], method: Sequence[Curve], metric: str, result: dict) -> Panel:
    """Return a panel with every run, the baseline's mean final distance, and the factor of `convergence_factor`."""
    curves = []
    for side, runs in (("baseline", baseline), ("method", method)):
        label = f"{side} ({len(runs)} seeds)" if len(runs) > 1 else side
        curves += [Series(label, run.steps.tolist(), run.values.tolist()) for run in runs]
    target = float(np.exp(np.mean([np.log(run.last[1]) for run in baseline])))
    curves.append(Series("final distance of the baseline", [], [target], level=True))
    factor = f"{result['factor']:.2f} ({result['low']:.2f} to {result['high']:.2f})"
    factor = f"at most {result['factor']:.2f}" if result["not_reached"] else factor
    title = f"{metric.removeprefix(PREFIX)}: convergence factor {factor}"
    return Panel(title, "training step", curves, y_scale="log")


def _title(name: str) -> str:
    if name.startswith(PREFIX):
        return f"{name.removeprefix(PREFIX)}, on few samples during training"
    return "training loss" if name == "loss" else name


def _names(entries: list[dict]) -> list[str]:
    names = dict.fromkeys(name for entry in entries for name in entry if name != "step")
    return [name for name in names if not name.startswith(BY_TIME)]


def _series(entries: list[dict], name: str, label: str | None = None) -> Series:
    points = {entry["step"]: entry[name] for entry in entries if name in entry}
    return Series(label or name, list(points), list(points.values()))
