"""The results of a sweep as CSV, Markdown and a plot. Points that differ only in their seeds share one row."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from redi.pages.plots import save
from redi.pages.sweep_plots import sweep_panels
from redi.pages.sweep_results import Group, SweepResults
from redi.sweeps.points import is_seed

ARROWS = {"lower": " ↓", "higher": " ↑", "closer to ceiling": " → ceiling"}
MAX_PANELS = 6


def write_results(run_dir: Path, results: SweepResults) -> None:
    """Write `results.csv`, `results.md` and `results.png`. The plot leaves out metrics that have a ceiling."""
    (run_dir / "results.csv").write_text(table_csv(results), encoding="utf-8")
    (run_dir / "results.md").write_text(table_markdown(results, run_dir.resolve().name), encoding="utf-8")
    plotted = [name for name, better in results.metrics.items() if better != "closer to ceiling"]
    if panels := sweep_panels(results, (plotted or list(results.metrics))[:MAX_PANELS]):
        save(run_dir / "results.png", panels)


def table_csv(results: SweepResults) -> str:
    """Return a row per group: bindings, number of points, mean and spread of every metric in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes = [axis for axis in results.group_axes if not is_seed(axis)]
    kinds = ("mean", "std", *(("difference", "difference_std", "p") if results.baseline else ()))
    columns = [f"{metric}_{kind}" for metric in results.metrics for kind in kinds]
    writer.writerow(["group", *axes, "num_points", *columns])
    for group in results.groups:
        numbers = []
        for metric in results.metrics:
            numbers += [group.mean(metric), group.spread(metric) if len(group.values(metric)) > 1 else None]
            numbers += [*(results.difference(group, metric) or [None] * 3)] if results.baseline else []
        cells = [group.bindings.get(axis, "") for axis in axes]
        writer.writerow([group.name, *cells, group.num_done, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()


def table_markdown(results: SweepResults, title: str) -> str:
    """Return a table of mean ± sample standard deviation. The best value is bold if the spreads do not overlap."""
    heads = [f"{metric}{ARROWS.get(better, '')}" for metric, better in results.metrics.items()]
    lines = [f"# {title}", "", _line(["point", *heads, "seeds"]), _line(["---"] + ["---:"] * (len(heads) + 1))]
    best = {metric: results.best(metric) for metric in results.metrics}
    for group in results.groups:
        cells = [_cell(group, metric, group is best[metric]) for metric in results.metrics]
        lines.append(_line([group.name, *cells, str(group.num_done)]))
    lines += _differences(results, heads) if results.baseline else []
    note = "Mean ± sample standard deviation over seeds. ↓ lower is better, ↑ higher is better. Bold: better than every"
    lines += ["", f"{note} other value by more than the sum of both ±."]
    if any("†" in line for line in lines):
        lines.append("† ± over the sampling seeds of one trained model.")
    if results.missing:
        lines += ["", "Missing:", ""] + [f"- {name}: {' '.join(why.split())}" for name, why in results.missing.items()]
    return "\n".join(lines) + "\n"


def _differences(results: SweepResults, heads: Sequence[str]) -> list[str]:
    """Return a table of the differences from the baseline."""
    name = results.baseline
    title = f"Difference from {name}, seed by seed (p: paired t-test, which needs two seeds):"
    lines = ["", title, "", _line(["point", *heads])]
    lines.append(_line(["---"] + ["---:"] * len(heads)))
    for group in results.groups:
        each = [results.difference(group, metric) for metric in results.metrics]
        if group.name != name:
            cells = [f"{d.mean:+.3g} ± {d.spread:.2g} (p {d.p:.2g})" if d else "–" for d in each]
            lines.append(_line([group.name, *cells]))
    return lines


def _cell(group: Group, metric: str, best: bool) -> str:
    if (mean := group.mean(metric)) is None:
        return "–"
    text = f"{mean:.4g}"
    if (spread := group.spread(metric)) is not None:
        text += f" ± {spread:.2g}" + (" †" if len(group.values(metric)) == 1 else "")
    return f"**{text}**" if best else text


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
