"""Averages of a run's weights over other lengths of its training, as run folders."""

import logging
import shutil
from pathlib import Path

from redi.runtime.artefact import read_record
from redi.runtime.checkpoint import Retention, list_checkpoints, save_checkpoint
from redi.runtime.paths import local_path
from redi.training.posthoc import reconstruct_average

log = logging.getLogger("redi")


def average(run_dir: str | Path, sigma_rel: float, *, at_step: int | None = None, to: str | Path | None = None) -> Path:
    """Write a folder that `redi.load`, redi.sample and redi.evaluate open as a run -> the folder.

    Args:
        run_dir, sigma_rel, at_step: see `redi.training.posthoc.reconstruct_average`.
        to: default: averages/sigma_rel_<..>_step_<..> in `run_dir`. An average there is replaced.

    Raises:
        ValueError: as `reconstruct_average`; or another run in `to`.
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    run_dir, to = local_path(run_dir), to and local_path(to)
    if to is not None and any("average" not in read_record(folder) for folder in list_checkpoints(to)):
        raise ValueError(f"{to} holds a run that was trained: choose another folder for the average")
    found = reconstruct_average(run_dir, sigma_rel, at_step=at_step)
    to = to or run_dir / "averages" / f"sigma_rel_{found.sigma_rel:g}_step_{found.step:08d}"
    groups, record = found.checkpoint
    tensors = {name: groups[name] for name in ("codec", "colours") if name in groups} | {"ema": found.parameters}
    same = ("model_arguments", "image_size", "seed", "codec", "codec_fingerprint", "dataset")
    newer = {key: record[key] for key in ("plug_ins", "dataset_contents", "class_names") if key in record}
    record = {key: record[key] for key in same} | newer | {"average": found.provenance()}
    save_checkpoint(to, found.step, tensors, record, keep=Retention(1))
    for name in ("config.gin", "audit.json"):
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, to / name)
    combination = found.combination
    log.info(
        "sigma_rel %g at step %d, of %d averages: its density is met to %.2g, rounding errors of snapshots count %.2g "
        "times: %s", found.sigma_rel, found.step, len(found.sources), combination.error, combination.noise, to,
    )  # fmt: skip
    return to
