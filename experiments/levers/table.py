"""Print the table of the levers from the finished points of their sweep, write results.json beside this file, and state
the measured effect in the presets.

python experiments/levers/table.py runs/levers
"""

import json
import re
import sys
from pathlib import Path

from redi.pages.sweep_results import Group, SweepResults

DISTANCE, RECOGNISED = "frechet_distance_domain_network", "recognised_as_label"
HERE = Path(__file__).parent
PRESETS = HERE.parents[1] / "gin" / "levers"
# Points that sample with guidance are also compared with ReDi under classifier-free guidance.
GUIDED = ("joint_null", "earlier", "smaller", "best", "inner")
POINTS = {
    "lead": "lead=0.3", "autoguidance_earlier": "earlier=1.5", "autoguidance_smaller": "smaller=1.5",
    "inner_guidance": "inner=1.78",
}  # fmt: skip


def record(results: SweepResults, group: Group) -> dict:
    """Return the numbers of one row."""
    row = {"distance": group.values(DISTANCE), "mean": group.mean(DISTANCE), "std": group.spread(DISTANCE)}
    row |= {"recognised": group.values(RECOGNISED), "recognised_mean": group.mean(RECOGNISED)}
    for results.baseline in ("redi", *(["redi_cfg"] if group.name.startswith(GUIDED) else [])):
        if difference := results.difference(group, DISTANCE):
            row[f"against_{results.baseline}"] = difference._asdict()
    return row


def interval(row: dict) -> str:
    """Return a distance with its spread."""
    return f"{row['mean']:.2f} ± {row['std']:.2f}"


def cells(name: str, row: dict) -> list[str]:
    """Return a row of the table."""
    differences = [row.get(f"against_{baseline}") for baseline in ("redi", "redi_cfg")]
    shown = [f"{d['mean']:+.2f} ± {d['spread']:.2f} (p {d['p']:.2g})" if d else "" for d in differences]
    return [name, interval(row), *shown, f"{100 * row['recognised_mean']:.1f} %", str(len(row["distance"]))]


def state(path: Path, rows: dict[str, dict]) -> None:
    """Write the measured effect into the opening of a preset."""
    name = POINTS.get(path.stem, path.stem)
    if "against_redi" not in (row := rows.get(name, {})):
        return
    against = f"{interval(rows['redi'])} without it (p {row['against_redi']['p']:.2g})"
    if name.startswith(GUIDED):
        against += f", {interval(rows['redi_cfg'])} with classifier-free guidance"
    line = f"# Measured: digits, 400 steps, distance {interval(row)}, {against}: experiments/levers."
    path.write_text(re.sub(r"^# Measured: .*$", line, path.read_text(), flags=re.MULTILINE))


def main() -> None:
    """Write results.json and the presets' openings, and print the table."""
    results = SweepResults(sys.argv[1])
    rows = {group.name: record(results, group) for group in results.groups if len(group.values(DISTANCE)) > 1}
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    for path in PRESETS.glob("*.gin"):
        state(path, rows)
    print("| point | distance | against ReDi | against ReDi with guidance | recognised | seeds |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {' | '.join(cells(name, row))} |")


if __name__ == "__main__":
    main()
