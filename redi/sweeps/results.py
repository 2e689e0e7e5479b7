"""What a sweep found: one row for every group of points that differ in their seeds alone, as CSV and Markdown."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redi.sweeps.plan import Planned
from redi.sweeps.point import read_result
from redi.sweeps.points import is_seed

ARROWS = {"lower": " ↓", "higher": " ↑", "closer to ceiling": " → ceiling"}


@dataclass
class Row:
    """A group: its bindings without seeds, and of each metric one value a point."""

    group: str
    bindings: dict[str, str]
    values: dict[str, list[float]] = field(default_factory=dict)
    spreads: dict[str, float | None] = field(default_factory=dict)  # of a point alone: over the seeds of its sampling
    num_points: int = 0

    def mean(self, metric: str) -> float | None:
        return statistics.fmean(self.values[metric]) if self.values.get(metric) else None

    def spread(self, metric: str) -> float | None:
        """The sample standard deviation over points; None where there is one alone."""
        values = self.values.get(metric, [])
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Results:
    """All that is done of a sweep, and what is missing."""

    rows: list[Row]
    metrics: dict[str, str]  # name -> which direction is better, "" where unknown
    missing: dict[str, str]  # name of a point -> why

    @property
    def axes(self) -> list[str]:
        """The swept bindings, without seeds."""
        return list(dict.fromkeys(key for row in self.rows for key in row.bindings))


def gather(run_dir: Path, planned: Sequence[Planned]) -> Results:
    """Reads every point's result; groups stand in the order of the plan."""
    rows: dict[str, Row] = {}
    metrics: dict[str, str] = {}
    missing = {}
    for entry in planned:
        bindings = {key: value for key, value in entry.bindings.items() if not is_seed(key)}
        row = rows.setdefault(entry.group, Row(entry.group, bindings))
        if (result := read_result(entry.folder(run_dir))) is None:
            error = entry.folder(run_dir) / "error.txt"
            missing[entry.name] = error.read_text().partition("\n\n")[0].strip() if error.exists() else "not done"
            continue
        row.num_points += 1
        for metric in result["metrics"]:
            name = metric["metric"]
            metrics.setdefault(name, metric.get("better") or "")
            if isinstance(metric["value"], int | float) and math.isfinite(metric["value"]):
                row.values.setdefault(name, []).append(metric["value"])
            row.spreads[name] = metric.get("spread")
    return Results(list(rows.values()), metrics, missing)


def write_tables(run_dir: Path, results: Results) -> None:
    """Writes `results.csv` and `results.md`."""
    (run_dir / "results.csv").write_text(table_csv(results), encoding="utf-8")
    (run_dir / "results.md").write_text(table_markdown(results, run_dir.resolve().name), encoding="utf-8")


def table_csv(results: Results) -> str:
    """Full precision: group, bindings, number of points, and mean and spread of every metric; '' where unknown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric}_{what}" for metric in results.metrics for what in ("mean", "std")]
    writer.writerow(["group", *results.axes, "num_points", *columns])
    for row in results.rows:
        numbers = [number for metric in results.metrics for number in (row.mean(metric), row.spread(metric))]
        cells = [row.bindings.get(axis, "") for axis in results.axes]
        writer.writerow([row.group, *cells, row.num_points, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()


def table_markdown(results: Results, title: str) -> str:
    """For people: mean ± sample standard deviation; the best mean of a column is bold."""
    heads = [f"{metric}{ARROWS.get(better, '')}" for metric, better in results.metrics.items()]
    lines = [f"# {title}", "", _line(["point", *heads, "seeds"]), _line(["---"] + ["---:"] * (len(heads) + 1))]
    best = {metric: _best(results, metric) for metric in results.metrics}
    for row in results.rows:
        cells = [_cell(row, metric, row is best[metric]) for metric in results.metrics]
        lines.append(_line([row.group, *cells, str(row.num_points)]))
    lines += [
        "",
        "Mean ± sample standard deviation over seeds; ↓ lower is better, ↑ higher is better; the best is bold.",
    ]
    if any(row.num_points == 1 and any(row.spreads.values()) for row in results.rows):
        lines.append("† ± over the seeds of the sampling of one trained model.")
    if results.missing:
        lines += ["", "Missing:", ""] + [f"- {name}: {_one_line(why)}" for name, why in results.missing.items()]
    return "\n".join(lines) + "\n"


def _cell(row: Row, metric: str, best: bool) -> str:
    if (mean := row.mean(metric)) is None:
        return "–"
    spread, mark = row.spread(metric), ""
    if spread is None and row.spreads.get(metric):
        spread, mark = row.spreads[metric], " †"
    text = f"{mean:.4g}" if spread is None else f"{mean:.4g} ± {spread:.2g}{mark}"
    return f"**{text}**" if best else text


def _best(results: Results, metric: str) -> Row | None:
    found = [row for row in results.rows if row.mean(metric) is not None]
    choose = {"lower": min, "higher": max}.get(results.metrics[metric])
    return choose(found, key=lambda row: row.mean(metric)) if choose and len(found) > 1 else None


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
