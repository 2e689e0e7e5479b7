"""The run's log: one JSON line per entry, and TensorBoard beside it."""

import contextlib
import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redi.runtime.atomic import write_text
from redi.runtime.paths import local_path

log = logging.getLogger(__name__)


class RunLog:
    """Writes scalars and pictures to `log.jsonl` and `tensorboard/`; a line is there whole or not at all.

    Entries after `step`, of an earlier attempt, are dropped. Raises OSError: `log.jsonl` cannot be written.
    """

    def __init__(self, run_dir: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path = Path(run_dir) / "log.jsonl"
        lines = [_line(entry) for entry in read_log(run_dir) if entry["step"] <= step]
        with _advising(self.path):
            write_text(self.path, b"".join(lines).decode())
        self.tensorboard = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=step + 1)
        self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def scalars(self, step: int, **values: float | None) -> None:
        """One line {"step": ..., name: value, ...}, null for what is not finite. Raises OSError."""
        line, before = _line({"step": step, **values}), os.fstat(self.file).st_size
        with _advising(self.path, f" at step {step}"):
            if os.write(self.file, line) != len(line):  # a full disk took a part of it
                os.ftruncate(self.file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name, value in values.items():
                if value is not None:
                    self.tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image) -> None:
        """A PIL image, to TensorBoard. Raises OSError."""
        with _advising(self.tensorboard.log_dir, f" at step {step}"):
            self.tensorboard.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Closes both. An error of TensorBoard is a warning only: the lines are in log.jsonl."""
        os.close(self.file)
        try:
            self.tensorboard.close()
        except OSError as error:
            log.warning("TensorBoard's files in %s are not complete: %s", self.tensorboard.log_dir, error)


def read_log(run_dir: str | Path) -> list[dict]:
    """The entries of `log.jsonl`; lines that are none, as a crash of the machine may leave them, are left out."""
    path = local_path(run_dir) / "log.jsonl"
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
    return entries


def _line(entry: Mapping) -> bytes:
    """JSON knows neither NaN nor infinity: null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in entry.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


@contextlib.contextmanager
def _advising(path: Path | str, when: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free some space and run the same command again to go on from the last checkpoint"
        raise OSError(f"could not write {path}{when}: {error}; {advice}") from None


class AsyncScalars:
    """Numbers on their way from the device: one copy for all of them, which the host need not wait for at once."""

    def __init__(self, values: Mapping[str, Tensor | float]):
        self.names = list(values)
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values.values()])
        self.copy, self.arrival = stacked, None
        if stacked.is_cuda:
            self.copy = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.copy.copy_(stacked, non_blocking=True)
            self.arrival = torch.cuda.Event()
            self.arrival.record(torch.cuda.current_stream(stacked.device))  # whose device need not be the current one

    def get(self) -> dict[str, float]:
        """Wait for them if they have not arrived."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return dict(zip(self.names, self.copy.tolist(), strict=True))


class LogWindow:
    """What happened since the last line of the log: sums over steps, on their device, and a clock. `stored` is the
    `state` of a run that is resumed between two lines.
    """

    def __init__(self, stored: Mapping | None = None):
        self.steps: int = stored["steps"] if stored else 0  # skipped ones included
        # Sums over the steps that were not skipped; "skipped": how many were
        self.totals: dict[str, Tensor | float] = dict(stored["totals"]) if stored else {}
        self.restart_clock()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds the values of one step, without waiting for the device; of a step with "skipped" 1 only that."""
        skipped = values.get("skipped")
        for name, value in values.items():
            if skipped is not None and name != "skipped":  # not by a product: a skipped step's values are not finite
                value = torch.where(skipped > 0, 0.0, value)
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.steps += 1
        self.timed += 1

    def restart_clock(self) -> None:
        """Leaves out of the speed what happened since the last step: a preview, a checkpoint."""
        self.timed, self.started = 0, time.perf_counter()

    def steps_per_second(self) -> float:
        """Since the clock was restarted."""
        return self.timed / (time.perf_counter() - self.started)

    def means(self) -> AsyncScalars:
        """Per step that was not skipped, and "skipped_steps"; NaN where all were."""
        totals = dict(self.totals)
        if (skipped := totals.pop("skipped", None)) is None:
            return AsyncScalars({name: total / self.steps for name, total in totals.items()})
        skipped = torch.as_tensor(skipped)
        means = {name: total / (self.steps - skipped) for name, total in totals.items()}
        return AsyncScalars(means | {"skipped_steps": skipped})

    def state(self) -> dict:
        """As JSON, for a checkpoint."""
        return {"steps": self.steps, "totals": {name: float(total) for name, total in self.totals.items()}}
