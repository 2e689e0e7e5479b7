"""Checkpoints: a folder per step, safetensors and JSON, written atomically, verified when read, and rotated."""

import logging
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from redi.runtime.artefact import load_artefact, read_record, save_artefact, verify_artefact
from redi.runtime.atomic import rename
from redi.runtime.checksums import BrokenArtefact
from redi.runtime.paths import local_path
from redi.runtime.ranges import check_number
from redi.runtime.spelling import did_you_mean

log = logging.getLogger(__name__)

FORMAT = "redi checkpoint 2"
WAYS = {"lowest": min, "highest": max}


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay when another is written."""

    last: int = 2  # how many of the newest
    every: int | None = None  # those whose step is a multiple of this
    best: str | None = None  # the one measured best, as 'lowest frechet_distance_domain_network_of_500'

    def __post_init__(self):
        for name, count in (("keep_checkpoints", self.last), ("keep_every", 1 if self.every is None else self.every)):
            check_number(f"train.{name}", count)
        if self.best is not None:
            best_of(self.best)

    def keeps(self, folders: Sequence[Path]) -> set[Path]:
        """Those of the checkpoints, oldest first, that stay."""
        stay = {*folders[-self.last :]}
        stay |= {folder for folder in folders if self.every and step_of(folder) % self.every == 0}
        if self.best is not None:
            choose, name = best_of(self.best)
            values = {folder: measured(folder).get(name) for folder in reversed(folders)}
            values = {f: v for f, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
            stay |= {choose(values, key=values.get)} if values else set()
        return stay


def best_of(best: str) -> tuple:
    """'lowest NAME' or 'highest NAME' -> min or max, and the name. Raises ValueError."""
    way, _, name = best.partition(" ") if isinstance(best, str) else ("", "", "")
    if way not in WAYS or not name.strip():
        raise ValueError(
            f"train.keep_best = {best!r}: it is 'lowest' or 'highest' and the name of what the monitor measures, as "
            "'lowest frechet_distance_domain_network_of_500'"
        )
    return WAYS[way], name.strip()


def check_best(best: str | None, monitor) -> None:
    """Raises ValueError unless this monitor measures what `train.keep_best` names, as far as it says what (`names`)."""
    if best is None:
        return
    _, name = best_of(best)
    if monitor is None:
        raise ValueError(f"train.keep_best = {best!r}, but nothing is measured: set train.monitor = Monitor()")
    known = getattr(monitor, "names", None)
    if known is not None and name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"train.keep_best names {name!r}; train.monitor measures {', '.join(known)}{hint}")


def measured(folder: Path) -> Mapping:
    """What the monitor measured for a checkpoint; {} where it did not, or the record is broken."""
    return _record(folder).get("monitor") or {}


def ended_early(run_dir: Path) -> bool:
    """Whether `train.on_log` ended the training with the newest checkpoint; False where its record is broken."""
    return any(_record(folder).get("ended_early") for folder in list_checkpoints(run_dir)[-1:])


def _record(folder: Path) -> Mapping:
    try:
        return read_record(folder)
    except BrokenArtefact:
        return {}


def newest_record(run_dir: Path) -> Mapping:
    """What the newest checkpoint says of itself; {} where there is none, or it is damaged."""
    return next(map(_record, reversed(list_checkpoints(run_dir))), {})


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """The inverse of `checkpoint_dir`."""
    return int(folder.name.removeprefix("step_"))


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((local_path(run_dir) / "checkpoints").glob("step_" + "[0-9]" * 8))


def save_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping, keep: Retention,
    *, ready: Mapping[str, Path] | None = None,
) -> Path:  # fmt: skip
    """Writes one checkpoint, `ready` as of `save_artefact`, then removes those that `keep` does not name.

    Raises OSError: disk full or not writable. The checkpoints before it are untouched.
    """
    folder = checkpoint_dir(run_dir, step)
    before = list_checkpoints(run_dir)
    for pattern in (".step_*.partial", ".step_*.replaced"):  # of a process that was killed while it wrote
        for leftover in folder.parent.glob(pattern):
            shutil.rmtree(leftover)
    try:
        save_artefact(folder, tensors, {"format": FORMAT, "step": step, **record}, ready=ready)
    except OSError as error:
        last = f"the last good checkpoint is {before[-1]}" if before else "there is no earlier checkpoint"
        advice = "Free some space and run the same command again to go on from there"
        raise OSError(f"checkpoint at step {step} not written: {error}; {last}. {advice}") from None
    folders = sorted({*before, folder})
    for old in sorted({*folders} - {folder} - keep.keeps(folders)):
        leaving = old.with_name(f".{old.name}.partial")  # so that a process killed now leaves no half a checkpoint
        old.rename(leaving)
        shutil.rmtree(leaving)
    return folder


def load_checkpoint(folder: Path, groups: Collection[str] | None = None) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """-> {"model": ..., "ema": ..., "optimizer": ..., "codec": ...} and the record; `groups` alone are read.

    Raises ValueError: truncated, altered or foreign, naming the file, the cause and what to do.
    """
    others = [path.name for path in list_checkpoints(folder.parent.parent) if path != folder]
    advice = f"delete {folder} to go on from {others[-1]}" if others else f"delete {folder} to start from step 0"
    try:
        _check_format(folder)
        return load_artefact(folder, groups=groups)
    except BrokenArtefact as error:
        raise ValueError(f"cannot use this checkpoint: {error}. If nothing else helps, {advice}") from None


def newest_good(
    run_dir: Path, groups: Collection[str] | None = None, *, set_aside: bool = True
) -> tuple[Path, dict[str, dict[str, Tensor]], dict] | None:
    """The newest intact checkpoint: its folder and what `load_checkpoint` returns; None without any.

    Warns of newer ones that are damaged; `set_aside` renames them to broken_step_..., so that training writes these
    steps again.

    Raises ValueError: all are damaged, and then nothing is renamed; or one is of another version.
    """
    causes: dict[Path, BrokenArtefact] = {}
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            _check_format(folder)
            tensors, record = load_artefact(folder, groups=groups)
        except BrokenArtefact as error:
            causes[folder] = error
            continue
        for broken, error in causes.items():
            place = f"it is {_set_aside(broken)} now; " if set_aside else ""
            log.warning("a damaged checkpoint is not used: %s; %sthe one before is good: %s", error, place, folder)
        return folder, tensors, record
    if causes:
        every = "; ".join(str(error) for error in causes.values())
        raise ValueError(
            f"no checkpoint in {run_dir} is as it was written: {every}. Put one back from a copy, or delete "
            f"{Path(run_dir) / 'checkpoints'} to start from step 0"
        )
    return None


def is_good(folder: Path) -> bool:
    """Whether a checkpoint is as it was written: reads all of it, and warns where it is not."""
    try:
        _check_format(folder)
        verify_artefact(folder)
    except BrokenArtefact as error:
        log.warning("a damaged checkpoint: %s", error)
        return False
    return True


def _check_format(folder: Path) -> None:
    name = read_record(folder).get("format")
    if isinstance(name, str) and name.startswith(FORMAT[:-1]) and name != FORMAT:
        raise ValueError(f"{folder} is a '{name}', of another version of redi: begin a new run in another folder")
    if name != FORMAT:
        raise BrokenArtefact(f"{folder} is not a redi checkpoint: its record.json says no '{FORMAT}'")


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"broken_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # an earlier one of the same step
    rename(folder, aside)
    return aside
