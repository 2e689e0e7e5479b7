"""Averages of any length, made after training of the snapshots that were taken in it."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redi.core.ema.power_function import GROUP, stored_averages
from redi.core.ema.profile import Combination, check_sigma_rel, combine
from redi.fusion.merged import with_one_bias
from redi.runtime.checkpoint import newest_good
from redi.runtime.paths import local_path
from redi.training.snapshots import list_snapshots, load_snapshot

log = logging.getLogger(__name__)

# Of the weights' density. Beyond, a noticeable part of the weight lies on other steps than it should.
CLOSE = 0.05
Stored = dict[float, dict[str, Tensor]]  # {sigma_rel: {parameter: tensor}}


@dataclass(frozen=True)
class Reconstruction:
    """An average that was not tracked in training."""

    parameters: dict[str, Tensor]  # float32
    sigma_rel: float
    step: int
    combination: Combination
    sources: tuple[tuple[float, int], ...]  # (sigma_rel, step) of what it is made of
    checkpoint: tuple[dict[str, dict[str, Tensor]], dict]  # the run's newest: its other groups, and its record

    def provenance(self) -> dict:
        """How it was made, as JSON."""
        combination = self.combination
        return {
            "sigma_rel": self.sigma_rel, "step": self.step, "error": combination.error, "noise": combination.noise,
            "of": [[*source, weight] for source, weight in zip(self.sources, combination.weights, strict=True)],
        }  # fmt: skip


def reconstruct_average(run_dir: str | Path, sigma_rel: float, *, at_step: int | None = None) -> Reconstruction:
    """The average of this length after `at_step` steps of a run that was trained with `ema.PowerFunctionEMA`.

    The closest sum (`combine`) of snapshots and of the newest checkpoint's averages, which have full precision. Memory:
    the average in float64, and one snapshot at a time.

    Args:
        sigma_rel: in (0, 12^-1/2]; see docs/ema.md for what snapshots can give.
        at_step: of a snapshot or of the newest checkpoint; default: the newest of them.

    Raises:
        ValueError: nothing to make it of, an `at_step` of which nothing is stored, or a damaged snapshot.
    """
    run_dir, sigma_rel = local_path(run_dir), check_sigma_rel(sigma_rel, "sigma_rel")
    if (good := newest_good(run_dir, ("ema", "averages", "codec", "colours"), set_aside=False)) is None:
        raise ValueError(f"{run_dir} holds no checkpoints: it is not the folder of a run, or training never saved one")
    checkpoint, tensors, record = good
    newest = stored_averages(tensors.pop("ema"), tensors.pop("averages", {}))
    if not newest:
        what = f"{run_dir} was not trained with power-function averages, of which others can be made"
        raise ValueError(f"{what}: set train.ema = ema.PowerFunctionEMA in the next training")
    snapshots = list_snapshots(run_dir)
    steps = sorted(snapshots.keys() | {record["step"]})
    at_step = steps[-1] if at_step is None else at_step
    if at_step not in steps:
        near = sorted(sorted(steps, key=lambda step: abs(step - at_step))[:4])
        raise ValueError(f"nothing of step {at_step} is stored in {run_dir}; near it are {', '.join(map(str, near))}")
    used = [step for step in steps if step <= at_step]
    sources = tuple((sigma, step) for step in used for sigma in newest)
    combination = combine(sources, (sigma_rel, at_step))
    if combination.error > CLOSE:
        what = f"the closest sum of {len(sources)} averages is off by {100 * combination.error:.0f} %"
        advice = f"more snapshots, or a length nearer to the tracked {' and '.join(map(str, newest))}, come closer"
        log.warning("sigma_rel = %g at step %d: %s; %s (docs/ema.md)", sigma_rel, at_step, what, advice)
    shares = dict(zip(sources, combination.weights.tolist(), strict=True))
    total: dict[str, Tensor] = {}
    for step in used:
        averages = newest
        if step != record["step"]:
            groups = with_one_bias(load_snapshot(snapshots[step]), next(iter(newest.values())))
            averages = {float(name.removeprefix(GROUP)): tensors for name, tensors in groups.items()}
        _add(total, averages, {sigma: shares[sigma, step] for sigma in newest}, snapshots.get(step, checkpoint))
    parameters = {name: tensor.float() for name, tensor in total.items()}
    return Reconstruction(parameters, sigma_rel, at_step, combination, sources, (tensors, record))


def _add(total: dict[str, Tensor], averages: Stored, shares: dict[float, float], folder: Path) -> None:
    """total += the averages, each times its share. Raises ValueError where they are of another model or lengths."""
    if averages.keys() != shares.keys():
        raise ValueError(f"{folder} holds averages of sigma_rels = {tuple(averages)}, the run has {tuple(shares)}")
    for sigma, tensors in averages.items():
        if not total:
            total.update({name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in tensors.items()})
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in total.items()}:
            raise ValueError(f"{folder} is of another model than the snapshots before: delete it if it is of no use")
        for name, tensor in tensors.items():
            total[name].add_(tensor.double(), alpha=shares[sigma])
