"""The run's log: one JSON line per entry, and TensorBoard beside it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
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


class Window:
    """What happened since the last line of the log: sums over steps, on their device, and a clock.

    Args:
        stored: what `state` gave, when a run is resumed between two lines.
    """

    def __init__(self, stored: Mapping | None = None):
        self.steps: int = stored["steps"] if stored else 0
        self.totals: dict[str, Tensor | float] = dict(stored["totals"]) if stored else {}
        self.restart_clock()

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Adds to the sums, without waiting for the device."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + weight * value.detach()

    def end_step(self) -> None:
        """Counts one step."""
        self.steps += 1
        self.timed += 1

    def restart_clock(self) -> None:
        """Leaves out of the speed what happened since the last step: a preview, a checkpoint."""
        self.timed, self.started = 0, time.perf_counter()

    def steps_per_second(self) -> float:
        """Since the clock was restarted."""
        return self.timed / (time.perf_counter() - self.started)

    def means(self) -> dict[str, float]:
        """Per step."""
        return {name: float(total) / self.steps for name, total in self.totals.items()}

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
