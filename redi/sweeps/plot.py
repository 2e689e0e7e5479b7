"""The plot of a sweep: a panel for each main metric, over the swept number or with one tick a group."""

import math
from pathlib import Path

from redi.pages.places import Place, placed
from redi.sweeps.results import ARROWS, Results

MOST_PANELS = 6


def plot(path: Path, results: Results) -> None:
    """Writes a PNG; nothing where no point is done. Bars are sample standard deviations.

    The first six metrics are drawn, without those that have a ceiling to reach, which a table shows better.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name, better in results.metrics.items() if better != "closer to ceiling"] or list(results.metrics)
    names = names[:MOST_PANELS]
    if not names:
        return
    what, places = placed({row.group: row.bindings for row in results.rows})
    columns = min(len(names), 3)
    lines = -(-len(names) // columns)
    width = 4.6 if what else max(4.6, 0.55 * len(results.rows) + 2)
    figure = Figure(figsize=(width * columns, 3.9 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for index, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, index + 1)
        if what:
            _over_numbers(panel, results, name, places, unnamed=what.rsplit(".", 1)[-1])
            panel.set_xlabel(what)
        else:
            _over_groups(panel, results, name)
        panel.set_title(f"{name}{ARROWS.get(results.metrics[name], '')}", fontsize=10)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:  # one for all panels, clear of the curves
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def _over_numbers(panel, results: Results, name: str, places: dict[str, Place], unnamed: str) -> None:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    levels: dict[str, float] = {}
    for row in results.rows:
        if (mean := row.mean(name)) is None:
            continue
        place = places[row.group]
        if place.x is None:
            levels[place.label] = mean
        else:
            lines.setdefault(place.label or unnamed, []).append((place.x, mean, row.spread(name) or 0.0))
    for label, found in lines.items():
        xs, means, spreads = zip(*sorted(found), strict=True)
        panel.errorbar(xs, means, yerr=spreads, marker="o", markersize=4, capsize=3, label=label)
    for index, (label, mean) in enumerate(levels.items()):
        panel.axhline(mean, linestyle="--", linewidth=1.2, color=f"C{len(lines) + index}", label=label)
    ticks = sorted({x for found in lines.values() for x, _, _ in found})
    if ticks and ticks[0] > 0 and all(math.log2(x).is_integer() for x in ticks):
        panel.set_xscale("log", base=2)
    if len(ticks) <= 8:
        panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
        panel.minorticks_off()


def _over_groups(panel, results: Results, name: str) -> None:
    rows = [row for row in results.rows if row.mean(name) is not None]
    spreads = [row.spread(name) or 0.0 for row in rows]
    panel.errorbar(
        range(len(rows)), [row.mean(name) for row in rows], yerr=spreads, marker="o", capsize=4, linestyle="none"
    )
    panel.set_xticks(range(len(rows)), [row.group for row in rows], rotation=30, ha="right", fontsize=8)
    panel.margins(x=0.1)
