"""What was trained, by which command, when, on what and for how long: `training.json`, beside the checkpoints.

Checkpoints hold none of it: a run that was stopped and resumed writes the same ones as a run that was not.
"""

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from redi.models.codec import JointCodec
from redi.runtime.atomic import write_json
from redi.runtime.device import device_name
from redi.runtime.distributed import Processes
from redi.runtime.progress import duration

log = logging.getLogger(__name__)

FILE = "training.json"


class History:
    """Begins a session of training at `step`; each `write` updates the file."""

    def __init__(
        self, run_dir: Path, step: int, model: nn.Module, processes: Processes, codec: JointCodec, image_size: int
    ):
        parameters = list(model.parameters())
        self.path, self.started = run_dir / FILE, time.monotonic()
        self.session = {
            "command": command(), "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device_name(parameters[0].device), "processes": processes.size, "first_step": step,
        }  # fmt: skip
        self.record = {
            "model": type(model).__name__,
            "num_parameters": sum(p.numel() for p in parameters),
            "num_trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "image_size": image_size,
            "channels": dict(codec.channels),
            "reducers": {name: type(made.reducer).__name__ for name, made in codec.representations.items()},
            "sessions": [],
        }
        try:
            self.record["sessions"] = list(json.loads(self.path.read_text())["sessions"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s), and begins anew", self.path, error)
        self.record["sessions"].append(self.session)

    def write(self, step: int) -> None:
        """After a checkpoint of this step. Raises OSError."""
        self.session["num_steps"] = step - self.session["first_step"]
        self.session["seconds"] = round(time.monotonic() - self.started, 1)
        write_json(self.path, self.record)


def in_brief(record: Mapping) -> dict[str, str]:
    """`training.json` in two lines, "model" and "training", and the last "command". Raises what a record of another
    version leads to.
    """
    sessions, size, channels = record["sessions"], record["image_size"], record["channels"]
    seconds, steps = (sum(session[key] for session in sessions) for key in ("seconds", "num_steps"))
    spent = f"{duration(seconds)} of training" + (f", {seconds / steps:.3g} s a step" if steps else "")
    reduced = [f"{name} by {reducer} in {channels[name]} channels" for name, reducer in record["reducers"].items()]
    model = [f"{record['model']}, {record['num_parameters'] / 1e6:.3g} M parameters", f"{size} x {size} pixels"]
    last = sessions[-1]
    return {
        "model": " · ".join([*model, *reduced, f"{last['first_step'] + last['num_steps']:,} steps"]),
        "training": f"Began {sessions[0]['began'][:10]} · {last['device']} · {spent}",
        "command": last["command"],
    }


def command() -> str:
    """This process's command line as people type it, without the folders of the interpreter and the script."""
    if "ipykernel" in sys.modules:
        return "a notebook"
    program, *arguments = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(program).name]
    return " ".join(map(_quoted, [*words, *arguments]))


def _quoted(word: str) -> str:
    """As README writes it: "IMAGES = 'a/folder'", where the shell changes nothing between double quotes."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
