"""The convergence factor: how many times fewer steps a method needs to reach what a baseline ends with."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redi.runtime.log import read_log

PREFIX = "monitor/"


@dataclass
class Curve:
    """A distance during one training run: lower is better, and all values are positive."""

    name: str
    steps: np.ndarray  # (M,) ascending
    values: np.ndarray  # (M,)

    @property
    def last(self) -> tuple[int, float]:
        """Its final step and value."""
        return int(self.steps[-1]), float(self.values[-1])

    def first_step_at(self, target: float) -> float | None:
        """Where it first comes down to `target`, between two points linear in the logarithm; None: never."""
        below = np.flatnonzero(self.values <= target)
        if not len(below):
            return None
        i = int(below[0])
        if i == 0:
            return float(self.steps[0])
        high, low = math.log(self.values[i - 1]), math.log(self.values[i])
        part = (high - math.log(target)) / (high - low)
        return float(self.steps[i - 1] + part * (self.steps[i] - self.steps[i - 1]))


def read_curve(run_dir: str | Path, metric: str) -> Curve:
    """What `train.monitor` logged in a run. Raises ValueError where that has no such metric, or it is no distance."""
    name = metric if metric.startswith(PREFIX) else PREFIX + metric
    entries = read_log(Path(run_dir))
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    if len(points) < 2:
        known = sorted({key.removeprefix(PREFIX) for entry in entries for key in entry if key.startswith(PREFIX)})
        has = f"it has {', '.join(known)}" if known else "it was trained without train.monitor (see monitor.gin)"
        raise ValueError(f"{run_dir} has no curve of {metric!r}: {has}")
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{run_dir}: {metric} is not positive and finite at every step, and so no distance to compare")
    return Curve(Path(run_dir).name, steps, values)


def convergence_factor(*, baseline: Sequence[Curve], method: Sequence[Curve]) -> dict:
    """Baseline steps / method steps to the baseline's final distance (the counterpart of the paper's Figure 2).

    Every baseline run (seed) sets a target, its own final value, and every method run is asked when it first gets
    there. The factor is the geometric mean over all pairs; "low" and "high" are its 2.5th and 97.5th percentile when
    the seeds of both sides are drawn again with replacement: the spread over seeds, not the error that all share.

    A first crossing of a noisy curve is compared with a last value, which favours whoever is asked for the crossing; so
    "null" holds the factors of every baseline run against the targets of the others; a factor among these says nothing.

    -> "factor", "low", "high", "pairs" (one per baseline and method run), "null"; "not_reached": the number of pairs
    in which the method never got there: its last step counts, and the factor is an upper bound; "at_once": of those
    in which its first point was there already, a lower bound.
    """
    if not baseline or not method:
        raise ValueError(f"a factor needs runs on both sides, got {len(baseline)} baselines and {len(method)} others")
    sides = list(itertools.product(baseline, method))
    pairs = [_pair(*side) for side in sides]
    logs = np.log([pair["factor"] for pair in pairs]).reshape(len(baseline), len(method))
    low, high = np.percentile(_resampled(logs), [2.5, 97.5])
    return {
        "factor": math.exp(logs.mean()),
        "low": math.exp(low),
        "high": math.exp(high),
        "null": [_pair(*side)["factor"] for side in itertools.permutations(baseline, 2)],
        "not_reached": sum(pair["steps"] is None for pair in pairs),
        "at_once": sum(pair["steps"] == float(other.steps[0]) for pair, (_, other) in zip(pairs, sides, strict=True)),
        "pairs": pairs,
    }


def _pair(baseline: Curve, method: Curve) -> dict:
    total, target = baseline.last
    reached = method.first_step_at(target)
    factor = total / (method.last[0] if reached is None else reached)
    names = {"baseline": baseline.name, "method": method.name}
    return names | {"target": target, "baseline_steps": total, "steps": reached, "factor": factor}


def _resampled(logs: np.ndarray, most: int = 10_000) -> np.ndarray:
    """Means of logs (B, M) over rows and columns drawn with replacement: all draws, or `most` of them at random."""
    rows, columns = logs.shape
    if rows**rows * columns**columns <= most:
        draws = itertools.product(*(itertools.product(range(n), repeat=n) for n in (rows, columns)))
    else:
        generator = np.random.default_rng(0)
        draws = ((generator.integers(rows, size=rows), generator.integers(columns, size=columns)) for _ in range(most))
    return np.array([logs[np.ix_(r, c)].mean() for r, c in draws])


def describe(result: dict) -> str:
    """The lines that the program prints."""
    factor = f"{'at most ' if result['not_reached'] else ''}{result['factor']:.2f}"
    interval, count = f"{result['low']:.2f} to {result['high']:.2f}", f"{len(result['pairs'])} pairs"
    lines = [f"convergence factor: {factor}  (95 % over seeds: {interval}; {count})"]
    if null := result["null"]:
        within = f"{min(null):.2f} to {max(null):.2f}"
        lines.append(f"  baselines against each other: {within}; a factor within that says nothing")
    for name, what in {
        "at_once": "the method's first point was below the target already: its factor there is at least what is said",
        "not_reached": "the method did not reach the baseline's final distance; its last step counts there",
    }.items():
        if result[name]:
            lines.append(f"  in {result[name]} of {count} {what}")
    for pair in result["pairs"]:
        target = f"{pair['baseline']}: {pair['target']:.4g} at step {pair['baseline_steps']}"
        reached = "never" if pair["steps"] is None else f"step {pair['steps']:.0f}"
        lines.append(f"  {target}; {pair['method']}: {reached}")
    return "\n".join(lines)
