"""Reconstruct EMA weights of other lengths from a run's snapshots, and write them as run folders."""

import logging
import shutil
from pathlib import Path

from redi.models.reducers import trained_state
from redi.runtime.artefact import read_record
from redi.runtime.checkpoint import Retention, list_checkpoints, save_checkpoint
from redi.runtime.checksums import json_sha256, tensors_sha256, without_versions
from redi.runtime.paths import local_path
from redi.training.posthoc import reconstruct_average

log = logging.getLogger("redi")


def average(run_dir: str | Path, sigma_rel: float, *, at_step: int | None = None, to: str | Path | None = None) -> Path:
    """Write an average as a run folder, which `redi.load` and the programs open; return the folder.

    Args:
        run_dir, sigma_rel, at_step: see `redi.training.posthoc.reconstruct_average`.
        to: the folder; default: averages/sigma_rel_<..>_step_<..> in `run_dir`. An average in it is replaced.

    Raises ValueError: see `reconstruct_average`; or `to` holds a trained run.
    """
    run_dir, to = local_path(run_dir), to and local_path(to)
    if to is not None and any("average" not in read_record(folder) for folder in list_checkpoints(to)):
        raise ValueError(f"{to} holds a trained run: choose another folder for the average")
    result = reconstruct_average(run_dir, sigma_rel, at_step=at_step)
    to = to or run_dir / "averages" / f"sigma_rel_{result.sigma_rel:g}_step_{result.step:08d}"
    groups, record = result.checkpoint
    tensors = {name: groups[name] for name in ("codec", "colours") if name in groups} | {"ema": result.parameters}
    keys = ("model_arguments", "image_size", "seed", "codec", "codec_fingerprint", "dataset")
    optional = {key: record[key] for key in ("plug_ins", "dataset_contents", "class_names") if key in record}
    record = {key: record[key] for key in keys} | optional | {"average": result.provenance()}
    if trained := trained_state(result.parameters):  # the projection of the same average
        tensors["codec"] = {**tensors["codec"], **trained}
        record["codec"] = record["codec"] | {"learned_sha256": tensors_sha256(tensors["codec"])}
        record["codec_fingerprint"] = json_sha256(without_versions(record["codec"]))
    save_checkpoint(to, result.step, tensors, record, keep=Retention(1))
    for name in ("config.gin", "audit.json"):
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, to / name)
    combination = result.combination
    log.info(
        "wrote %s: sigma_rel %g at step %d, from %d snapshots; relative error of the averaging profile %.2g, rounding "
        "errors amplified by %.2g", to, result.sigma_rel, result.step, len(result.sources), combination.error,
        combination.noise,
    )  # fmt: skip
    return to
