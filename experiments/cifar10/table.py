"""Print the table of a sweep of CIFAR-10: compute, distance at equal steps and at equal compute, and steps saved.

    python experiments/cifar10/table.py runs/cifar10_convergence [table.json]

Reads the logs and configurations in models/, so it also works while the sweep runs or after it was stopped. Distances
are those of the monitor: mean ± sample standard deviation over training seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np

from redi.core import config
from redi.core.configurables import import_all
from redi.evaluation.convergence import Curve, convergence_factor, read_curve
from redi.models.cost import forward_flops
from redi.models.interface import build_model
from redi.runs.checks import setting
from redi.training.trainer import train

BASELINE = "plain"


def mmac_per_step(folder: Path) -> float:
    """Return the multiply-adds, in millions, of forward and backward passes for one image of a run."""
    config.parse([folder / "config.gin"])
    codec, data = config.bound("train.codec"), config.bound("train.dataset")
    channels = codec.for_image_size(data.image_size).channels
    objective = setting(train, "objective")(channels=channels, num_classes=data.num_classes)
    model = build_model(setting(train, "model"), objective.model_arguments(codec, data))
    return 3 * forward_flops(model, align=bool(codec.alignments)) / 2 / 1e6


def curves(run_dir: Path) -> dict[str, list[tuple[Path, Curve]]]:
    """Return {method: [(folder, curve) of each seed]} of the runs with at least two measurements."""
    runs: dict[str, list[tuple[Path, Curve]]] = {}
    for folder in sorted(log.parent for log in (run_dir / "models").glob("*/log.jsonl")):
        metrics = [key for line in open(folder / "log.jsonl") for key in json.loads(line) if "distance" in key]
        if len(metrics) > 1:
            runs.setdefault(folder.name.split(",seed=")[0], []).append((folder, read_curve(folder, metrics[0])))
    return runs


def at(curve: Curve, step: float) -> float | None:
    """Return the distance at a step (log-linear between measurements); None after the last one."""
    if step > curve.steps[-1] * (1 + 1e-9):
        return None
    return float(np.exp(np.interp(step, curve.steps, np.log(curve.values))))


def until(curve: Curve, last: int) -> Curve:
    """Return a curve without the measurements after the step `last`."""
    return Curve(curve.name, curve.steps[curve.steps <= last], curve.values[curve.steps <= last])


def row(method: list[tuple[Path, Curve]], baseline: list[tuple[Path, Curve]], steps: list[int]) -> dict:
    """Return the numbers of one method, whose curves and those of the baseline reach the last of `steps`."""
    cost, cost_of_baseline = mmac_per_step(method[0][0]), mmac_per_step(baseline[0][0])
    measured = [curve for _, curve in method]
    equal = steps[-1] * min(1.0, cost_of_baseline / cost)
    result = {"mmac_per_image": round(cost, 1), "seeds": len(method)}
    result["distance"] = {step: [at(curve, step) for curve in measured] for step in steps}
    result["distance_at_equal_compute"] = {"step": round(equal), "values": [at(curve, equal) for curve in measured]}
    sides = {"baseline": baseline, "method": method}
    factor = convergence_factor(**{side: [until(c, steps[-1]) for _, c in runs] for side, runs in sides.items()})
    return result | {"factor": {key: factor[key] for key in ("factor", "low", "high", "null", "not_reached")}}


def spread(values: list[float]) -> str:
    """Format a mean with its spread."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def steps_saved(factor: dict) -> str:
    """Format a convergence factor with its 95 % interval over seeds."""
    text = f"{'at most ' if factor['not_reached'] else ''}{factor['factor']:.2f}"
    return text + (f" ({factor['low']:.2f} to {factor['high']:.2f})" if factor["low"] < factor["high"] else "")


def main(run_dir: Path, to: Path | None) -> None:
    """Print the table, and write its numbers to `to`."""
    import_all()
    runs = curves(run_dir)
    if BASELINE not in runs:
        raise SystemExit(f"{run_dir}: no run called {BASELINE} has two measurements yet")
    last = min(curve.last[0] for method in runs.values() for _, curve in method)
    steps = [int(step) for step in runs[BASELINE][0][1].steps if step <= last]
    shown = sorted({steps[len(steps) * part // 4 - 1] for part in range(1, 5) if len(steps) * part >= 4})
    rows = {name: row(method, runs[BASELINE], shown) for name, method in runs.items()}
    heads = ["", "MMAC per image", *(f"step {step}" for step in shown), "equal compute", "steps saved", "seeds"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name, numbers in rows.items():
        distances = [spread(values) for values in numbers["distance"].values()]
        equal = spread(numbers["distance_at_equal_compute"]["values"])
        cells = [name, f"{numbers['mmac_per_image']:.1f}", *distances, equal]
        saved = "" if name == BASELINE else steps_saved(numbers["factor"])
        print("| " + " | ".join([*cells, saved, str(numbers["seeds"])]) + " |")
    if to:
        to.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None)
