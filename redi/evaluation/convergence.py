"""The convergence factor: baseline steps / method steps to reach the baseline's final distance."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redi.runtime.log import read_log

PREFIX = "monitor/"


@dataclass
class Curve:
    """A monitored distance over one training run. Lower is better; all values are positive."""

    name: str
    steps: np.ndarray  # (M,) ascending
    values: np.ndarray  # (M,)

    @property
    def last(self) -> tuple[int, float]:
        """The final step and value."""
        return int(self.steps[-1]), float(self.values[-1])

    def first_step_at(self, target: float) -> float | None:
        """Return the first step with a value of at most `target` (log-linear between points), or None."""
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
    """Read a metric that `train.monitor` logged. Raises ValueError if it is missing or not positive and finite."""
    name = metric if metric.startswith(PREFIX) else PREFIX + metric
    entries = read_log(Path(run_dir))
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    if len(points) < 2:
        names = sorted({key.removeprefix(PREFIX) for entry in entries for key in entry if key.startswith(PREFIX)})
        has = f"choose from {', '.join(names)}" if names else "train it with train.monitor (see monitor.gin)"
        raise ValueError(f"{run_dir} has no curve of {metric!r}: {has}")
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{run_dir}: {metric} is not positive and finite at every step: choose a distance")
    return Curve(Path(run_dir).name, steps, values)


def convergence_factor(*, baseline: Sequence[Curve], method: Sequence[Curve]) -> dict:
    """Compute baseline steps / method steps to the baseline's final distance (the counterpart of the paper's Figure 2).

    The final value of every baseline run (seed) is a target, which each method run first reaches at some step. The
    factor is the geometric mean over all pairs. "low" and "high" are its 2.5th and 97.5th percentiles under bootstrap
    resampling of the seeds of both sides. They measure the spread over seeds, not errors that all runs share.

    Comparing the first crossing of a noisy curve with a final value favours the method. "null" therefore holds the
    factors between baseline runs. A factor within their range is not evidence of an improvement.

    Returns:
        "factor", "low", "high", "null" and "pairs". "not_reached" counts the pairs in which the method never reaches
        the target: its last step is used, so the factor is an upper bound. "at_once" counts the pairs in which the
        method's first point is already below the target, so the factor is a lower bound.
    """
    if not baseline or not method:
        count = f"{len(baseline)} baseline and {len(method)} method runs"
        raise ValueError(f"{count}: the convergence factor needs at least one of each")
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
    """Return means of logs (B, M) over rows and columns drawn with replacement: all draws, or `most` random ones."""
    rows, columns = logs.shape
    draws: Iterable[tuple]
    if rows**rows * columns**columns <= most:
        draws = itertools.product(*(itertools.product(range(n), repeat=n) for n in (rows, columns)))
    else:
        generator = np.random.default_rng(0)
        draws = ((generator.integers(rows, size=rows), generator.integers(columns, size=columns)) for _ in range(most))
    return np.array([logs[np.ix_(r, c)].mean() for r, c in draws])


def format_convergence(result: dict) -> str:
    """Format the result of `convergence_factor` for the terminal."""
    factor = f"{'at most ' if result['not_reached'] else ''}{result['factor']:.2f}"
    interval, count = f"{result['low']:.2f} to {result['high']:.2f}", f"{len(result['pairs'])} pairs"
    lines = [f"convergence factor: {factor}  (95 % over seeds: {interval}; {count})"]
    if null := result["null"]:
        within = f"{min(null):.2f} to {max(null):.2f}"
        lines.append(f"  baselines compared with each other: {within}; a factor in this range is not significant")
    for name, what in {
        "at_once": "the method's first point is already below the target, so the factor is a lower bound",
        "not_reached": "the method does not reach the baseline's final distance; its last step is used",
    }.items():
        if result[name]:
            lines.append(f"  in {result[name]} of {count} {what}")
    for pair in result["pairs"]:
        target = f"{pair['baseline']}: {pair['target']:.4g} at step {pair['baseline_steps']}"
        reached = "never" if pair["steps"] is None else f"step {pair['steps']:.0f}"
        lines.append(f"  {target}; {pair['method']}: {reached}")
    return "\n".join(lines)
