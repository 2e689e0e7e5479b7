"""Compute weight averages of any length after training, from the snapshots taken during training."""

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

# Warn above this relative error of the averaging profile: a noticeable share of the weight is then on wrong steps.
CLOSE = 0.05
Stored = dict[float, dict[str, Tensor]]  # {sigma_rel: {parameter: tensor}}


@dataclass(frozen=True)
class Reconstruction:
    """A weight average that was not tracked during training."""

    parameters: dict[str, Tensor]  # float32
    sigma_rel: float
    step: int
    combination: Combination
    sources: tuple[tuple[float, int], ...]  # (sigma_rel, step) of the averages it combines
    checkpoint: tuple[dict[str, dict[str, Tensor]], dict]  # the other groups of the run's newest one, and its record

    def provenance(self) -> dict:
        """Return the origin of this average as a JSON record."""
        combination = self.combination
        return {
            "sigma_rel": self.sigma_rel, "step": self.step, "error": combination.error, "noise": combination.noise,
            "of": [[*source, weight] for source, weight in zip(self.sources, combination.weights, strict=True)],
        }  # fmt: skip


def reconstruct_average(run_dir: str | Path, sigma_rel: float, *, at_step: int | None = None) -> Reconstruction:
    """Compute the average of length `sigma_rel` after `at_step` steps of a run trained with `ema.PowerFunctionEMA`.

    The result is the best linear combination (`combine`) of the snapshots and the newest checkpoint's averages, which
    have full precision. It needs memory for one average in float64 and one snapshot.

    Args:
        sigma_rel: in (0, 12^-1/2]; docs/ema.md states the range that snapshots can reproduce.
        at_step: step of a snapshot or of the newest checkpoint; default: the newest of them.

    Raises ValueError if the run has no power-function averages, none at `at_step`, or a damaged snapshot.
    """
    run_dir, sigma_rel = local_path(run_dir), check_sigma_rel(sigma_rel, "sigma_rel")
    if (good := newest_good(run_dir, ("ema", "averages", "codec", "colours"), set_aside=False)) is None:
        raise ValueError(f"{run_dir} holds no checkpoints: pass the folder of a run that has saved one")
    checkpoint, tensors, record = good
    newest = stored_averages(tensors.pop("ema"), tensors.pop("averages", {}))
    if not newest:
        what = f"{run_dir} was not trained with power-function averages"
        raise ValueError(f"{what}: train again with train.ema = ema.PowerFunctionEMA")
    snapshots = list_snapshots(run_dir)
    steps = sorted(snapshots.keys() | {record["step"]})
    at_step = steps[-1] if at_step is None else at_step
    if at_step not in steps:
        near = sorted(sorted(steps, key=lambda step: abs(step - at_step))[:4])
        raise ValueError(f"no snapshot of step {at_step} in {run_dir}; the nearest are {', '.join(map(str, near))}")
    earlier = [step for step in steps if step <= at_step]
    sources = tuple((sigma, step) for step in earlier for sigma in newest)
    combination = combine(sources, (sigma_rel, at_step))
    if combination.error > CLOSE:
        what = f"the best combination of {len(sources)} averages has an error of {100 * combination.error:.0f} %"
        advice = f"use more snapshots, or a length closer to the tracked {' and '.join(map(str, newest))}"
        log.warning("sigma_rel = %g at step %d: %s; %s (docs/ema.md)", sigma_rel, at_step, what, advice)
    shares = dict(zip(sources, combination.weights.tolist(), strict=True))
    total: dict[str, Tensor] = {}
    for step in earlier:
        averages = newest
        if step != record["step"]:
            groups = with_one_bias(load_snapshot(snapshots[step]), next(iter(newest.values())))
            averages = {float(name.removeprefix(GROUP)): tensors for name, tensors in groups.items()}
        _add(total, averages, {sigma: shares[sigma, step] for sigma in newest}, snapshots.get(step, checkpoint))
    parameters = {name: tensor.float() for name, tensor in total.items()}
    return Reconstruction(parameters, sigma_rel, at_step, combination, sources, (tensors, record))


def _add(total: dict[str, Tensor], averages: Stored, shares: dict[float, float], folder: Path) -> None:
    """Add each average times its share to `total`. Raise ValueError for another model or other lengths."""
    if averages.keys() != shares.keys():
        what = f"{folder} holds averages of sigma_rels = {tuple(averages)}, but the run has {tuple(shares)}"
        raise ValueError(f"{what}: delete the snapshot if it is not needed")
    for sigma, tensors in averages.items():
        if not total:
            total.update({name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in tensors.items()})
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in total.items()}:
            raise ValueError(f"{folder} is from another model than earlier snapshots: delete it if it is not needed")
        for name, tensor in tensors.items():
            total[name].add_(tensor.double(), alpha=shares[sigma])
