"""The run's log: one JSON line per entry, and TensorBoard beside it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RunLog:
    """Writes scalars and pictures to `log.jsonl` and `tensorboard/`.

    Args:
        run_dir: the run's folder.
        step: where the run stands; entries after it, of an earlier attempt, are dropped.
    """

    def __init__(self, run_dir: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.path = Path(run_dir) / "log.jsonl"
        kept = [line for line in read_log(run_dir) if line["step"] <= step]
        temporary = self.path.with_name(".log.jsonl.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115 - closed by close(); written line by line
        self.tensorboard = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, **values: float) -> None:
        """One line {"step": ..., name: value, ...}. Raises OSError where it cannot be written."""
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            advice = "free some space and run the same command again to go on from the last checkpoint"
            raise OSError(f"could not write {self.path} at step {step}: {error}; {advice}") from None
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image) -> None:
        """A PIL image, to TensorBoard."""
        self.tensorboard.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        self.file.close()
        self.tensorboard.close()


class Later:
    """Numbers on their way from the device: one copy for all of them, which the host need not wait for at once."""

    def __init__(self, values: Mapping[str, Tensor | float]):
        self.names = list(values)
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values.values()])
        self.copy, self.arrived = stacked, None
        if stacked.is_cuda:
            self.copy = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self.copy.copy_(stacked, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(stacked.device))  # whose device need not be the current one

    def get(self) -> dict[str, float]:
        """Waits for them, where they have not arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.copy.tolist(), strict=True))


class Line(NamedTuple):
    """A line of the log that is not written yet."""

    step: int
    means: Later
    steps_per_second: float
    learning_rate: float


class Window:
    """What happened since the last line of the log: sums over steps, on their device, and a clock.

    Args:
        stored: what `state` gave, when a run is resumed between two lines.
    """

    def __init__(self, stored: Mapping | None = None):
        self.steps: int = stored["steps"] if stored else 0
        self.totals: dict[str, Tensor | float] = dict(stored["totals"]) if stored else {}
        self.restart_clock()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds what one step gave, without waiting for the device."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.steps += 1
        self.timed += 1

    def restart_clock(self) -> None:
        """Leaves out of the speed what happened since the last step: a preview, a checkpoint."""
        self.timed, self.started = 0, time.perf_counter()

    def steps_per_second(self) -> float:
        """Since the clock was restarted."""
        return self.timed / (time.perf_counter() - self.started)

    def means(self) -> "Later":
        """Per step."""
        return Later({name: total / self.steps for name, total in self.totals.items()})

    def state(self) -> dict:
        """As JSON, for a checkpoint."""
        return {"steps": self.steps, "totals": {name: float(total) for name, total in self.totals.items()}}


def read_log(run_dir: Path) -> list[dict]:
    """The entries of `log.jsonl`; a last line cut off by a crash is left out."""
    path = Path(run_dir) / "log.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries
