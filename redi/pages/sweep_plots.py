"""The plots of a sweep: a panel for each metric, over the swept number or over named settings."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from redi.pages.plots import Panel, Series
from redi.pages.sweep_results import SweepResults
from redi.pages.wording import gin_number, gin_words


class Place(NamedTuple):
    """The place of a group: at x on the curve `label`; if x is None, a horizontal line."""

    x: float | None
    label: str


def sweep_panels(results: SweepResults, metrics: Iterable[str]) -> list[Panel]:
    """Return a panel for each metric, with error bars over seeds."""
    axes = results.group_axes
    groups = {g.name: {axis: g.bindings[axis] for axis in axes if axis in g.bindings} for g in results.groups}
    axis, places, names = place_groups(groups)
    if results.baseline:  # points to compare with one of them, whatever they bind
        axis, names = "point", list(groups)
        places = {name: Place(x, "") for x, name in enumerate(names)}
    panels = []
    for metric in metrics:
        better = results.metrics[metric]
        title = metric + (f" ({better} is better)" if better in ("lower", "higher") else "")
        lines: dict[str, list[tuple[float, float, float]]] = {}
        levels = []
        for group in results.groups:
            x, label = places[group.name]
            if (mean := group.mean(metric)) is None:
                continue
            if x is None:
                levels.append(Series(label, [], [mean], level=True))
            else:
                line = lines.setdefault(label or axis.rpartition(".")[2], [])
                line.append((x, mean, group.spread(metric) or 0.0))
        curves = []
        for label, line in lines.items():
            xs, means, spreads = zip(*sorted(line), strict=True)
            curves.append(Series(label, xs, means, spreads))
        panels.append(Panel(title, axis, curves + levels, names=names, swept=not names, marks=True))
    return panels


def place_groups(groups: Mapping[str, Mapping[str, str]]) -> tuple[str, dict[str, Place], list[str]]:
    """Return the x axis, the place of each group, and the names of x = 0, 1, ... if x are categories.

    The axis is the binding with the most distinct numbers, if every group with a swept number has it. Otherwise
    bindings with the same name, such as the scales of several rules, share the axis, with a curve each. Without swept
    numbers, the settings of the first binding are the categories; if the sweep is not a grid, the groups are. The label
    of a curve names its other bindings, or is ''.

    Args:
        groups: the bindings of each group, without seeds.
    """
    keys = dict.fromkeys(key for bindings in groups.values() for key in bindings)
    axes = [key for key in keys if len({bindings.get(key) for bindings in groups.values()}) > 1]
    last = {axis: axis.rpartition(".")[2] for axis in axes}
    numbers = {axis: {name: gin_number(bindings.get(axis)) for name, bindings in groups.items()} for axis in axes}
    numbers = {axis: {name: x for name, x in row.items() if x is not None} for axis, row in numbers.items()}
    swept = {axis: row for axis, row in numbers.items() if len(set(row.values())) > 1}
    everywhere = [axis for axis, row in swept.items() if row.keys() == {name for row in swept.values() for name in row}]
    names = []
    if everywhere:
        what = max(everywhere, key=lambda axis: len(set(swept[axis].values())))
        sharing = [what]
    elif swept:
        what = Counter(last[axis] for axis in swept).most_common(1)[0][0]
        sharing = [axis for axis in axes if last[axis] == what]
    else:
        num_settings = [len({bindings.get(axis) for bindings in groups.values()}) for axis in axes]
        axes = axes if math.prod(num_settings) == len(groups) else []
        what = axes[0] if axes else "point"
        settings = {name: gin_words(bindings.get(what)) if axes else name for name, bindings in groups.items()}
        names, sharing = list(dict.fromkeys(settings.values())), [what]
        numbers = {what: {name: names.index(setting) for name, setting in settings.items()}}
    places = {}
    for name, bindings in groups.items():
        present = [axis for axis in sharing if name in numbers[axis]]
        others = [
            f"{last[key] if list(last.values()).count(last[key]) == 1 else key} = {gin_words(bindings.get(key))}"
            for key in axes if key not in present and (key in bindings or names)
        ]  # fmt: skip
        label = ", ".join(others) or ("" if len(sharing) == 1 else (present or [""])[0])
        places[name] = Place(numbers[present[0]][name], label) if len(present) == 1 else Place(None, name)
    return what, places, names
