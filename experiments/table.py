"""Print the table of a sweep, and keep its numbers in results.json: every seed, mean, spread and paired differences.

python experiments/table.py runs/levers --folder experiments/levers --against redi redi_cfg

A difference is the mean over the seeds that both points have, ± its sample standard deviation, with p of the two-sided
paired t-test. The table has the differences of the first metric, results.json those of all. Points that are not done
are left out.
"""

import argparse
import json
from pathlib import Path

from redi.pages.sweep_results import Group, SweepResults

METRICS = (
    "distance=frechet_distance_domain_network", "in Lite2=frechet_distance_efficientnet_lite2",
    "recognised=recognised_as_label", "agreement=representation_agreement",
)  # fmt: skip


def record(results: SweepResults, group: Group, metric: str, against: list[str]) -> dict:
    """Return the values of a metric and its differences to the points `against`."""
    row: dict = {"values": group.values(metric), "mean": group.mean(metric), "std": group.spread(metric)}
    floors = [floor for point in group.points if (floor := point.value(metric, "floor")) is not None]
    row |= {"floor": sum(floors) / len(floors)} if floors else {}
    for results.baseline in against:
        if difference := results.difference(group, metric):
            row.setdefault("against", {})[results.baseline] = difference._asdict()
    return row


def cell(row: dict | None) -> str:
    """Return mean ± spread."""
    if not row:
        return ""
    return f"{row['mean']:.3g}" if row["std"] is None else f"{row['mean']:.3g} ± {row['std']:.2g}"


def difference(row: dict, point: str) -> str:
    """Return the difference to a point, with p."""
    if not (entry := row.get("against", {}).get(point)):
        return ""
    return f"{entry['mean']:+.3g} ± {entry['spread']:.2g} (p {entry['p']:.2g})"


def main() -> None:
    """Write results.json and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where results.json goes")
    parser.add_argument("--against", nargs="+", default=["plain"], help="the points to compare with")
    parser.add_argument("--metrics", nargs="+", default=METRICS, metavar="[HEADING=]METRIC", help="or its beginning")
    arguments = parser.parse_args()
    results, against = SweepResults(arguments.sweep), arguments.against
    if unknown := sorted({*against} - {group.name for group in results.groups}):
        parser.error(f"--against {' '.join(unknown)}: must be in {', '.join(group.name for group in results.groups)}")
    metrics = {}
    for heading, _, start in (text.partition("=") for text in arguments.metrics):
        if name := next((name for name in results.metrics if name.startswith(start or heading)), None):
            metrics[heading] = name
    if not metrics:
        parser.error(f"{arguments.sweep} has none of these metrics: choose from {', '.join(results.metrics)}")
    rows = {
        group.name: {h: record(results, group, m, against) for h, m in metrics.items() if group.values(m)}
        for group in results.groups if group.num_done
    }  # fmt: skip
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    first, *others = metrics
    print(f"| point | {first} | {' | '.join([*(f'against {name}' for name in against), *others])} | seeds |")
    print("|---" * (len(metrics) + len(against) + 2) + "|")
    for name, row in rows.items():
        differences = [difference(row.get(first, {}), point) for point in against]
        cells = [cell(row.get(first)), *differences, *(cell(row.get(heading)) for heading in others)]
        print(f"| {name} | {' | '.join(cells)} | {max(len(entry['values']) for entry in row.values())} |")
    for heading in metrics:
        if floors := [row[heading]["floor"] for row in rows.values() if "floor" in row.get(heading, {})]:
            print(f"\nFloor of {heading}: {sum(floors) / len(floors):.3g}.")


if __name__ == "__main__":
    main()
