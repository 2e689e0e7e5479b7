"""Snapshots of the weight averages, kept beside a run's checkpoints: one folder per step, written atomically."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from redi.runtime.artefact import load_artefact, save_artefact
from redi.runtime.checksums import BrokenArtefact

FORMAT = "redi snapshot 1"


def list_snapshots(run_dir: Path) -> dict[int, Path]:
    """Return {step: folder} of a run's snapshots, oldest first."""
    folders = sorted((Path(run_dir) / "snapshots").glob("step_" + "[0-9]" * 8))
    return {int(folder.name.removeprefix("step_")): folder for folder in folders}


def save_snapshot(run_dir: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping) -> Path:
    """Write the result of `AveragedWeights.snapshot`; return the folder. Raises ValueError or OSError."""
    for tensors in groups.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                what = f"{name} is not finite as {str(tensor.dtype).removeprefix('torch.')}"
                raise ValueError(f"snapshot at step {step}: {what}: set PowerFunctionEMA.snapshot_dtype = 'float32'")
    folder = Path(run_dir) / "snapshots" / f"step_{step:08d}"
    for pattern in (".step_*.partial", ".step_*.replaced"):  # from a process that was killed while writing
        for leftover in folder.parent.glob(pattern):
            shutil.rmtree(leftover)
    try:
        save_artefact(folder, groups, {"format": FORMAT, "step": step, **record})
    except OSError as error:
        advice = "Free some space, or raise PowerFunctionEMA.snapshot_every, and rerun the same command"
        what = f"the snapshot at step {step} was not written: {error}"
        raise OSError(f"{what}. {advice} to resume from the last checkpoint") from None
    return folder


def load_snapshot(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Load and verify the groups of a snapshot. Raises ValueError if it is damaged or has another format."""
    try:
        groups, record = load_artefact(folder)
    except BrokenArtefact as error:
        advice = f"Delete {folder} to continue without it; the approximation error of the others is then reported"
        raise ValueError(f"cannot use this snapshot: {error}. {advice}") from None
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder} is not a snapshot of this version of redi, '{FORMAT}'. Delete it to continue")
    return groups


def drop_snapshots(run_dir: Path, after: int) -> None:
    """Remove the snapshots after the step at which training resumes, because the steps may now differ."""
    for step, folder in list_snapshots(run_dir).items():
        if step > after:
            shutil.rmtree(folder)
