"""The log of a run: a JSON line per entry, and TensorBoard files."""

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
    """Write scalars to `log.jsonl` and scalars and pictures to `tensorboard/`; each line is written atomically.

    Existing entries after `step`, from an earlier attempt, are removed. Raises OSError if a file cannot be written.
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
        """Write one line {"step": ..., name: value, ...}; non-finite values become null. Raises OSError."""
        line, before = _line({"step": step, **values}), os.fstat(self.file).st_size
        with _advising(self.path, f" at step {step}"):
            if os.write(self.file, line) != len(line):  # the disk is full
                os.ftruncate(self.file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name, value in values.items():
                if value is not None:
                    self.tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image) -> None:
        """Write a PIL image to TensorBoard. Raises OSError."""
        with _advising(self.tensorboard.log_dir, f" at step {step}"):
            self.tensorboard.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Close both logs. A TensorBoard error is only a warning, because log.jsonl has every entry."""
        os.close(self.file)
        try:
            self.tensorboard.close()
        except OSError as error:
            log.warning("the TensorBoard files in %s are incomplete: %s", self.tensorboard.log_dir, error)


def read_log(run_dir: str | Path) -> list[dict]:
    """Read the entries of `log.jsonl`; skip malformed lines, such as those left by a machine crash."""
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
    """Encode an entry as a JSON line; NaN and infinity, which JSON lacks, become null."""
    finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in entry.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


@contextlib.contextmanager
def _advising(path: Path | str, when: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free disk space and rerun the same command to resume from the last checkpoint"
        raise OSError(f"could not write {path}{when}: {error}; {advice}") from None


class AsyncScalars:
    """Scalars copied from the device in one asynchronous transfer, so that training does not wait for them."""

    def __init__(self, values: Mapping[str, Tensor | float]):
        self.names = list(values)
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values.values()])
        self.copy, self.arrival = stacked, None
        if stacked.is_cuda:
            self.copy = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.copy.copy_(stacked, non_blocking=True)
            self.arrival = torch.cuda.Event()
            self.arrival.record(torch.cuda.current_stream(stacked.device))  # may not be the current device

    def get(self) -> dict[str, float]:
        """Return the values on the host; wait for the transfer if necessary."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return dict(zip(self.names, self.copy.tolist(), strict=True))


class LogWindow:
    """Sums over the steps since the last log line, on the device, and a clock; `stored`: a saved `state()`."""

    def __init__(self, stored: Mapping | None = None):
        self.steps: int = stored["steps"] if stored else 0  # includes skipped steps
        # Sums over the steps that were not skipped; "skipped" counts the others.
        totals = stored["totals"].items() if stored else ()
        self.totals: dict[str, Tensor | float] = {
            name: torch.tensor(total) if isinstance(total, list) else total for name, total in totals
        }
        self.restart_clock()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the values of one step without waiting for the device; a step with "skipped" 1 is only counted.

        A value is a scalar or, for means by bins, (2, bins): the sums and the counts.
        """
        skipped = values.get("skipped")
        for name, value in values.items():
            if skipped is not None and name != "skipped":  # where(): the values of a skipped step may not be finite
                value = torch.where(skipped > 0, 0.0, value)
            total = self.totals.get(name, 0.0)
            self.totals[name] = (total.to(value.device) if isinstance(total, Tensor) else total) + value
        self.totals = {name: self.totals[name] for name in values}  # without terms that ended within the window
        self.steps += 1
        self.timed += 1

    def restart_clock(self) -> None:
        """Restart the speed measurement, so that a preview or a checkpoint does not count as training time."""
        self.timed, self.started = 0, time.perf_counter()

    def steps_per_second(self) -> float:
        """Return the speed since the clock was restarted."""
        return self.timed / (time.perf_counter() - self.started)

    def means(self) -> AsyncScalars:
        """Return means over the steps that were not skipped (NaN if all were) and the number of "skipped_steps".

        A bin is called <name>/<its centre in [0, 1]>, and NaN if it is empty.
        """
        means: dict[str, Tensor | float] = {}
        totals = dict(self.totals)
        skipped = torch.as_tensor(totals.pop("skipped", 0.0))
        for name, total in totals.items():
            if isinstance(total, Tensor) and total.ndim:
                bins = total[0] / total[1]
                means |= {f"{name}/{(i + 0.5) / len(bins):.4g}": mean for i, mean in enumerate(bins)}
            else:
                means[name] = total / (self.steps - skipped)
        return AsyncScalars(means | ({"skipped_steps": skipped} if "skipped" in self.totals else {}))

    def state(self) -> dict:
        """Return the sums as JSON values, for a checkpoint."""
        totals = {name: t.tolist() if isinstance(t, Tensor) else float(t) for name, t in self.totals.items()}
        return {"steps": self.steps, "totals": totals}
