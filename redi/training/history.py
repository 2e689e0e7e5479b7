"""The history of a run, `training.json`: the model, and the command, date, device and duration of every session.

Checkpoints hold none of this, so a resumed run writes the same checkpoints as an uninterrupted one.
"""

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from redi.models.codec import JointCodec
from redi.runtime.atomic import write_json
from redi.runtime.device import device_name
from redi.runtime.distributed import Processes
from redi.runtime.progress import duration

log = logging.getLogger(__name__)

FILE = "training.json"


class History:
    """Records a training session that begins at `step`. Each `write` updates the file."""

    def __init__(
        self, run_dir: Path, step: int, model: nn.Module, processes: Processes, codec: JointCodec, image_size: int
    ):
        parameters = list(model.parameters())
        self.path, self.started = run_dir / FILE, time.monotonic()
        self.session: dict[str, Any] = {
            "command": command(), "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device_name(parameters[0].device), "processes": processes.size, "first_step": step,
        }  # fmt: skip
        self.record: dict[str, Any] = {
            "model": type(model).__name__,
            "num_parameters": sum(p.numel() for p in parameters),
            "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "image_size": image_size,
            "channels": codec.channels.record(),
            "reducers": {name: type(r.reducer).__name__ for name, r in codec.representations.items()},
            "sessions": [],
        }
        try:
            self.record["sessions"] = list(json.loads(self.path.read_text())["sessions"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): starting a new one, without the earlier sessions", self.path, error)
        self.record["sessions"].append(self.session)

    def write(self, step: int) -> None:
        """Update the file after the checkpoint of this step. Raises OSError."""
        self.session["num_steps"] = step - self.session["first_step"]
        self.session["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.path, self.record)


def in_brief(record: Mapping) -> dict[str, str]:
    """Summarize `training.json` in three lines. Raises KeyError or TypeError for the record of another version."""
    sessions, size, channels = record["sessions"], record["image_size"], record["channels"]
    seconds, steps = (sum(session[key] for session in sessions) for key in ("seconds", "num_steps"))
    spent = f"{duration(seconds)} of training" + (f", {seconds / steps:.3g} s per step" if steps else "")
    sizes = {n: f"{c} channels" if isinstance(c, int) else f"a vector of {c['length']}" for n, c in channels.items()}
    reduced = [f"{name}: {reducer}, {sizes[name]}" for name, reducer in record["reducers"].items()]
    model = [f"{record['model']}, {record['num_parameters'] / 1e6:.3g} M parameters", f"{size} x {size} pixels"]
    last = sessions[-1]
    return {
        "model": " · ".join([*model, *reduced, f"{last['first_step'] + last['num_steps']:,} steps"]),
        "training": f"Started {sessions[0]['began'][:10]} · {last['device']} · {spent}",
        "command": last["command"],
    }


def command() -> str:
    """Return the command line of this process as a user types it, without the folders of interpreter and script."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *arguments = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(program).name]
    return " ".join(map(_quoted, [*words, *arguments]))


def _quoted(word: str) -> str:
    """Quote as in the README, "IMAGES = 'a/folder'", unless the shell would change the text in double quotes."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
