"""What a round of faults did, as a table: JSON for machines, Markdown for people."""

import json
import platform
from collections.abc import Iterable
from pathlib import Path


class Report:
    """Outcomes of faults, a row for each kind."""

    def __init__(self):
        self.rows: dict[tuple[str, str], dict] = {}

    def add(
        self, training: str, fault: str, *, survived: bool, steps_lost: int = 0, verified: int = 0, corrupted: int = 0
    ):
        """Counts one fault.

        Args:
            training: which of the trainings suffered it, in words.
            survived: the same command went on, or the program ended as it promises.
            verified: checkpoints that were read afterwards; `corrupted`: things found broken.
        """
        row = self.rows.setdefault(
            (training, fault),
            {"training": training, "fault": fault, "injected": 0, "survived": 0, "steps_lost": 0,
             "steps_lost_at_most": 0, "checkpoints_verified": 0, "corrupted": 0},
        )  # fmt: skip
        row["injected"] += 1
        row["survived"] += survived
        row["steps_lost"] += steps_lost
        row["steps_lost_at_most"] = max(row["steps_lost_at_most"], steps_lost)
        row["checkpoints_verified"] += verified
        row["corrupted"] += corrupted

    def write(self, folder: Path) -> None:
        """`chaos.json` and `chaos.md`."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(self.rows.values(), key=lambda row: (row["training"], row["fault"]))
        where = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform()}
        (folder / "chaos.json").write_text(json.dumps({"environment": where, "rows": rows}, indent=2) + "\n")
        (folder / "chaos.md").write_text(markdown(rows))


def markdown(rows: Iterable[dict]) -> str:
    """A table with a last line of sums."""
    rows = list(rows)
    names = list(rows[0]) if rows else []
    total: dict = {"training": "all", "fault": ""}
    for name in names[2:]:
        total[name] = (max if name.endswith("at_most") else sum)(row[name] for row in rows)
    lines = [" | ".join(name.replace("_", " ") for name in names), " | ".join(["---"] * 2 + ["--:"] * (len(names) - 2))]
    lines += [" | ".join(str(row[name]) for name in names) for row in [*rows, total] if names]
    return "".join(f"| {line} |\n" for line in lines if line)
