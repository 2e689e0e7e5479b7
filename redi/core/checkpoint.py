"""Checkpoints: a folder per step, safetensors and JSON, written atomically and verified when read."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from redi.core.artefact import BrokenArtefact, load_artefact, read_record, save_artefact

log = logging.getLogger(__name__)

FORMAT = "redi checkpoint 2"


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping, keep: int
) -> Path:
    """Writes one checkpoint, then removes all but the newest `keep`.

    Raises:
        OSError: disk full or not writable. The checkpoints before it are untouched.
    """
    folder = checkpoint_dir(run_dir, step)
    before = list_checkpoints(run_dir)
    for leftover in folder.parent.glob(".step_*.partial"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    try:
        save_artefact(folder, tensors, {"format": FORMAT, "step": step, **record})
    except OSError as error:
        last = f"the last good checkpoint is {before[-1]}" if before else "there is no earlier checkpoint"
        raise OSError(
            f"checkpoint at step {step} not written: {error}; {last}. "
            "Free some space and run the same command again to go on from there"
        ) from None
    for old in [path for path in before if path != folder][: -(keep - 1) or None]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((Path(run_dir) / "checkpoints").glob("step_" + "[0-9]" * 8))


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """-> {"model": ..., "ema": ..., "optimizer": ..., "codec": ...} and the record.

    Raises:
        ValueError: truncated, altered or foreign, naming the file, the cause and what to do.
    """
    others = [path.name for path in list_checkpoints(folder.parent.parent) if path != folder]
    advice = f"delete {folder} to go on from {others[-1]}" if others else f"delete {folder} to start from step 0"
    try:
        found = read_record(folder).get("format")
        if isinstance(found, str) and found.startswith(FORMAT[:-1]) and found != FORMAT:
            raise ValueError(f"{folder} is a '{found}', of another version of redi: begin a new run in another folder")
        if found != FORMAT:
            raise BrokenArtefact(f"{folder} is not a redi checkpoint: its record.json says no '{FORMAT}'")
        return load_artefact(folder)
    except BrokenArtefact as error:
        raise ValueError(f"cannot use this checkpoint: {error}. If nothing else helps, {advice}") from None
