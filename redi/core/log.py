"""The run's log: one JSON line per entry, and TensorBoard beside it."""

import json
from pathlib import Path

import numpy as np


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
        """One line {"step": ..., name: value, ...}."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image) -> None:
        """A PIL image, to TensorBoard."""
        self.tensorboard.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        self.file.close()
        self.tensorboard.close()


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
