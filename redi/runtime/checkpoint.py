"""Checkpoints: a folder per step, written atomically, verified on reading, and rotated."""

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
DIRECTIONS = {"lowest": min, "highest": max}


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept when a new one is written."""

    last: int = 2  # the number of newest checkpoints
    every: int | None = None  # keep all checkpoints whose step is a multiple of this
    best: str | None = None  # keep the best by a metric, such as 'lowest frechet_distance_domain_network_of_500'

    def __post_init__(self):
        for name, count in (("keep_checkpoints", self.last), ("keep_every", 1 if self.every is None else self.every)):
            check_number(f"train.{name}", count)
        if self.best is not None:
            best_of(self.best)

    def keeps(self, folders: Sequence[Path]) -> set[Path]:
        """Return the checkpoints to keep of `folders`, which are sorted from oldest to newest."""
        kept = {*folders[-self.last :]}
        kept |= {folder for folder in folders if self.every and step_of(folder) % self.every == 0}
        if self.best is not None:
            choose, name = best_of(self.best)
            values = {folder: measured(folder).get(name) for folder in reversed(folders)}
            values = {f: v for f, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
            kept |= {choose(values, key=values.get)} if values else set()
        return kept


def best_of(best: str) -> tuple:
    """Parse 'lowest NAME' or 'highest NAME'; return min or max, and the name. Raises ValueError."""
    direction, _, name = best.partition(" ") if isinstance(best, str) else ("", "", "")
    if direction not in DIRECTIONS or not name.strip():
        raise ValueError(
            f"train.keep_best = {best!r} must be 'lowest' or 'highest' and the name of a metric of the monitor, "
            "such as 'lowest frechet_distance_domain_network_of_500'"
        )
    return DIRECTIONS[direction], name.strip()


def check_best(best: str | None, monitor) -> None:
    """Raise ValueError if the monitor does not measure the metric `best`; a monitor without `names` may measure any."""
    if best is None:
        return
    _, name = best_of(best)
    if monitor is None:
        raise ValueError(f"train.keep_best = {best!r} needs a monitor: set train.monitor = Monitor()")
    names = getattr(monitor, "names", None)
    if names is not None and name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"train.keep_best = {best!r} must name a metric of train.monitor: {', '.join(names)}{hint}")


def measured(folder: Path) -> Mapping:
    """Return the monitor's metrics of a checkpoint; {} if there are none or the record is damaged."""
    return _record(folder).get("monitor") or {}


def ended_early(run_dir: Path) -> bool:
    """Return whether `train.on_log` ended training at the newest checkpoint; False if its record is damaged."""
    return any(_record(folder).get("ended_early") for folder in list_checkpoints(run_dir)[-1:])


def _record(folder: Path) -> Mapping:
    try:
        return read_record(folder)
    except BrokenArtefact:
        return {}


def newest_record(run_dir: Path) -> Mapping:
    """Return the record of the newest checkpoint; {} if there is no checkpoint or it is damaged."""
    return next(map(_record, reversed(list_checkpoints(run_dir))), {})


def checkpoint_dir(run_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return Path(run_dir) / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint folder."""
    return int(folder.name.removeprefix("step_"))


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    return sorted((local_path(run_dir) / "checkpoints").glob("step_" + "[0-9]" * 8))


def save_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping, keep: Retention,
    *, ready: Mapping[str, Path] | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint, then delete those that `keep` does not retain. Raises OSError; none is deleted then."""
    folder = checkpoint_dir(run_dir, step)
    existing = list_checkpoints(run_dir)
    for pattern in (".step_*.partial", ".step_*.replaced"):  # left by a process that was killed while writing
        for leftover in folder.parent.glob(pattern):
            shutil.rmtree(leftover)
    try:
        save_artefact(folder, tensors, {"format": FORMAT, "step": step, **record}, ready=ready)
    except OSError as error:
        last = f"the last good checkpoint is {existing[-1]}" if existing else "there is no earlier checkpoint"
        advice = "Free disk space and rerun the same command to resume from there"
        raise OSError(f"the checkpoint at step {step} was not written: {error}; {last}. {advice}") from None
    folders = sorted({*existing, folder})
    for old in sorted({*folders} - {folder} - keep.keeps(folders)):
        partial = old.with_name(f".{old.name}.partial")  # a process killed now leaves no incomplete checkpoint
        old.rename(partial)
        shutil.rmtree(partial)
    return folder


def load_checkpoint(folder: Path, groups: Collection[str] | None = None) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Load the tensors {"model": ..., "ema": ..., "optimizer": ..., "codec": ...} and the record of a checkpoint.

    With `groups`, only those are read. Raises ValueError if the checkpoint is truncated, altered or not from redi.
    """
    others = [path.name for path in list_checkpoints(folder.parent.parent) if path != folder]
    advice = f"delete {folder} to resume from {others[-1]}" if others else f"delete {folder} to start from step 0"
    try:
        _check_format(folder)
        return load_artefact(folder, groups=groups)
    except BrokenArtefact as error:
        raise ValueError(f"cannot load the checkpoint: {error}. Restore it from a copy, or {advice}") from None


def newest_good(
    run_dir: Path, groups: Collection[str] | None = None, *, set_aside: bool = True
) -> tuple[Path, dict[str, dict[str, Tensor]], dict] | None:
    """Load the newest intact checkpoint: its folder and the result of `load_checkpoint`; None without checkpoints.

    Warns about newer checkpoints that are damaged. With `set_aside` they are renamed to `broken_step_...`, and training
    writes them again. Raises ValueError if all are damaged (none is renamed) or one is from another version of redi.
    """
    causes: dict[Path, BrokenArtefact] = {}
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            _check_format(folder)
            tensors, record = load_artefact(folder, groups=groups)
        except BrokenArtefact as error:
            causes[folder] = error
            continue
        for broken, cause in causes.items():
            renamed, new = "", broken.with_name(f"broken_{broken.name}")
            if set_aside:
                shutil.rmtree(new, ignore_errors=True)  # an earlier damaged checkpoint of the same step
                rename(broken, new)
                renamed = f"renamed it to {new}; "
            log.warning("ignoring a damaged checkpoint: %s; %susing the previous one: %s", cause, renamed, folder)
        return folder, tensors, record
    if causes:
        details = "; ".join(str(cause) for cause in causes.values())
        raise ValueError(
            f"all checkpoints in {run_dir} are damaged: {details}. Restore one from a copy, or delete "
            f"{Path(run_dir) / 'checkpoints'} to start from step 0"
        )
    return None


def is_good(folder: Path) -> bool:
    """Verify a checkpoint by reading all of it; return whether it is intact, and log a warning if not."""
    try:
        _check_format(folder)
        verify_artefact(folder)
    except BrokenArtefact as error:
        log.warning("a checkpoint is damaged: %s", error)
        return False
    return True


def _check_format(folder: Path) -> None:
    name = read_record(folder).get("format")
    if isinstance(name, str) and name.startswith(FORMAT[:-1]) and name != FORMAT:
        raise ValueError(f"{folder} has the format '{name}' of another redi version: start a new run in another folder")
    if name != FORMAT:
        raise BrokenArtefact(f"{folder} is not a redi checkpoint: the format in its record.json is not '{FORMAT}'")
