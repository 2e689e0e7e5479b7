"""Snapshots of averages, kept for good beside a run's checkpoints: a folder per step, written atomically."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from redi.runtime.artefact import load_artefact, save_artefact
from redi.runtime.checksums import BrokenArtefact

FORMAT = "redi snapshot 1"


def list_snapshots(run_dir: Path) -> dict[int, Path]:
    """{step: folder} of a run's snapshots, oldest first."""
    folders = sorted((Path(run_dir) / "snapshots").glob("step_" + "[0-9]" * 8))
    return {int(folder.name.removeprefix("step_")): folder for folder in folders}


def save_snapshot(run_dir: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping) -> Path:
    """Write what `AveragedWeights.snapshot` gave after `step` steps, as whole tensors.

    Raises ValueError where a weight is out of the stored type's range, and OSError with nothing left behind.
    """
    for tensors in groups.values():
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                what = f"{name} is not finite as {str(tensor.dtype).removeprefix('torch.')}"
                raise ValueError(f"snapshot at step {step}: {what}: set PowerFunctionEMA.snapshot_dtype = 'float32'")
    folder = Path(run_dir) / "snapshots" / f"step_{step:08d}"
    for pattern in (".step_*.partial", ".step_*.replaced"):  # of a process that was killed while it wrote
        for leftover in folder.parent.glob(pattern):
            shutil.rmtree(leftover)
    try:
        save_artefact(folder, groups, {"format": FORMAT, "step": step, **record})
    except OSError as error:
        advice = "Free some space, or set a larger PowerFunctionEMA.snapshot_every, and run the same command again"
        what = f"snapshot at step {step} not written: {error}"
        raise OSError(f"{what}. {advice}: it resumes from the last checkpoint") from None
    return folder


def load_snapshot(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The groups of a snapshot, verified. Raises ValueError: truncated, altered or foreign, and what to do."""
    try:
        groups, record = load_artefact(folder)
    except BrokenArtefact as error:
        advice = f"Delete {folder} to do without it: how close the others come is told then"
        raise ValueError(f"cannot use this snapshot: {error}. {advice}") from None
    if record.get("format") != FORMAT:
        raise ValueError(f"{folder} is not a snapshot of this version of redi: its record.json says no '{FORMAT}'")
    return groups


def drop_snapshots(run_dir: Path, after: int) -> None:
    """Removes what was taken after this step, when a training begins at it: by one that went otherwise, maybe."""
    for step, folder in list_snapshots(run_dir).items():
        if step > after:
            shutil.rmtree(folder)
