"""Gradients that are not finite: steps that were skipped for it are counted, and explained when there are too many."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redi.runtime.artefact import write_json
from redi.runtime.log import Later
from redi.training.finiteness import Watch, bad_rows, finite, local

log = logging.getLogger(__name__)

PHASES = ("input", "weights", "forward", "loss", "backward", "gradient", "norm", "none")  # in the order of a step


class SkipGuard:
    """Counts the steps that changed nothing because their gradient was not finite, without waiting for the device.

    Here and below a step is given counted from 0, as `TrainingStep` is, and said counted from 1, as in the log.

    Attributes:
        count: of skipped steps since the last checkpoint.
        last: the last skipped step.

    Args:
        max_skipped: so many between two checkpoints are put up with. Those that still follow one another when a
            checkpoint is written count on, so that a run of nothing else ends.
        warns: whether this process says so.
    """

    def __init__(self, max_skipped: int, *, warns: bool = True):
        if not isinstance(max_skipped, int) or max_skipped < 0:
            raise ValueError(f"train.max_skipped_steps = {max_skipped!r}: a whole number of at least 0 is needed")
        self.max_skipped, self.warns = max_skipped, warns
        self.count, self.streak = 0, 0
        self.last: int | None = None
        self.pending: deque[tuple[int, Later]] = deque()

    def add(self, step: int, skipped: Tensor) -> None:
        """What a step gave: () 1 where it was skipped."""
        self.pending.append((step, Later({"skipped": skipped})))

    def arrived(self, wait: bool = False) -> list[int]:
        """-> the steps that turned out skipped since the last call; with `wait`, up to the last that was added."""
        found = []
        while self.pending and (wait or self.pending[0][1].ready):
            step, later = self.pending.popleft()
            if not later.get()["skipped"]:
                self.streak = 0
                continue
            found.append(step)
            self.last, self.count, self.streak = step, self.count + 1, self.streak + 1
            if self.warns and (self.count <= 3 or self.count & (self.count - 1) == 0):  # 1, 2, 3, 4, 8, 16, ...
                log.warning(
                    "step %d is skipped, for its gradient is not finite: the weights stay as they are "
                    "(%d of at most %d since the last checkpoint)", step + 1, self.count, self.max_skipped,
                )  # fmt: skip
        return found

    @property
    def exceeded(self) -> bool:
        """Whether it is time to stop."""
        return self.count > self.max_skipped

    def reset(self) -> None:
        """A checkpoint is written."""
        self.count = self.streak


@dataclass(frozen=True)
class Finding:
    """Where the first number arose that is not finite.

    Attributes:
        module: the module's name in the model; "" is the model itself, or none of its modules.
        phase: 'input', 'weights', 'forward', 'loss', 'backward', 'gradient' (of the module's own parameters), 'norm' (a
            finite gradient whose norm overflows), or 'none': the repeated step was finite.
        rows: of the step's batch, those that hold such numbers where they first appear; empty where it is not theirs.
        text: all of it as a sentence.
    """

    module: str
    phase: str
    rows: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def found(self) -> bool:
        return self.phase != "none"


def explain(model: nn.Module, losses: Callable[[], dict[str, Tensor]], x: Tensor, *, first_row: int = 0) -> Finding:
    """Computes a step once more with an eye on every module, and names the first that gives no finite numbers.

    Under FSDP all processes call it, for the passes communicate; each finds what its own rows do. The model's gradients
    are dropped. Compiled modules run as written, so that it can be seen into them.

    Args:
        model: not wrapped in DistributedDataParallel; `fully_shard`ed is fine.
        losses: the forward pass, on the same batch and draws: {"loss": (), ...}.
        x: clean states (n, C, H, W), as the pass is given them.
        first_row: of x in the step's batch, for `Finding.rows`.
    """
    model.zero_grad(set_to_none=True)
    bad_weights = next((name for name, value in model.named_parameters() if not finite(value)), None)
    with ExitStack() as hooks:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; to import it takes seconds
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
        watch = Watch(model, len(x), hooks)
        try:
            values = losses()
            values["loss"].backward()
        except torch.OutOfMemoryError:
            values = None
    gradients = {name: local(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    def finding(phase: str, module: str, rows: list[int], text: str) -> Finding:
        return Finding(module, phase, [first_row + row for row in rows], text + _in_rows(rows, first_row))

    if rows := bad_rows(x):
        return finding("input", "", rows, "the clean states that the model is given are not finite")
    if bad_weights is not None:
        return finding("weights", bad_weights.rpartition(".")[0], [], f"the weights {bad_weights} are not finite")
    if values is None:
        return finding("none", "", [], "there is not enough memory to compute it once more and look into it")
    if watch.forward is not None:
        name, rows = watch.forward
        return finding("forward", name, watch.output_rows or rows, f"the output of {_named(model, name)} is not finite")
    if bad := [name for name, value in values.items() if not finite(value)]:
        what = f"{', '.join(bad)} is not finite though the model's output is: the error overflows"
        return finding("loss", "", watch.overflowing_rows, what)
    if watch.backward is not None:
        name, inside, rows = watch.backward
        what = "in" if inside else "before it reaches"
        text = f"the forward pass is finite, the gradient becomes not finite {what} {_named(model, name)}"
        return finding("backward", name, rows, text)
    if bad := next((name for name, gradient in gradients.items() if not finite(gradient)), None):
        return finding("gradient", bad.rpartition(".")[0], [], f"the gradient of {bad} is not finite")
    if sum(float(g.float().square().sum()) for g in gradients.values()) > torch.finfo(torch.float32).max:
        return finding("norm", "", [], "every gradient is finite, but their norm overflows")
    text = "computed once more, everything is finite here: it passed, as a fault of memory or of the network would"
    return finding("none", "", [], text)


def write_finding(
    run_dir: Path,
    step: int,
    rank: int,
    finding: Finding,
    positions: Sequence[int],
    names: Sequence[str] | None = None,
) -> Path:
    """Writes `nonfinite_step_00001234.json` of step 1233 (of a further rank: `..._rank_2.json`) -> its path.

    Args:
        positions: where in the data set each row of this process's batch lies; `finding.rows` count in it.
        names: of these rows, where the data set has any.
    """
    rows = [
        {"row": row, "position": int(positions[row])} | ({"name": names[row]} if names is not None else {})
        for row in finding.rows
    ]
    suffix = f"_rank_{rank}" if rank else ""
    path = Path(run_dir) / f"nonfinite_step_{step + 1:08d}{suffix}.json"
    batch = {"positions": [int(position) for position in positions]}
    write_json(path, {"step": step + 1, "rank": rank, **asdict(finding), "rows": rows, "batch": batch})
    return path


def stop_message(
    step: int, guard: SkipGuard, finding: Finding, keys: Sequence[str | int], path: Path, checkpoint: Path | None
) -> str:
    """What training ends with.

    Args:
        step: the one that was computed once more.
        keys: names or positions of the finding's rows.
        path: what `write_finding` wrote.
        checkpoint: the newest.
    """
    shown = ", ".join(map(str, keys[:5])) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    data = f" (images {shown} of the data set)" if keys else ""
    good = f"{checkpoint} is good" if checkpoint else "there is no checkpoint yet"
    return (
        f"{guard.count} steps had a gradient that is not finite since the last checkpoint, more than "
        f"train.max_skipped_steps = {guard.max_skipped}. Step {step + 1}: {finding.text}{data}; details in {path}. "
        f"No such step changed the weights, and {good}. {_advice(finding)}"
    )


def _advice(finding: Finding) -> str:
    if finding.phase == "input":
        return "Look at these images and at what was cached of them: run redi.prepare with prepare.verify = True"
    if finding.phase == "weights":
        return "Run the same command again to go on from the checkpoint"
    if finding.phase == "none":
        return "Run the same command again; where it comes back, suspect this machine's memory or GPU"
    return "Lower the learning rate, set train.precision = 'float32', or train.max_grad_norm = 1.0 where it is 0"


def _named(model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return f"{name} ({kind})" if name else f"the model ({kind})"


def _in_rows(rows: list[int], first_row: int) -> str:
    if not rows:
        return ""
    shown = ", ".join(str(first_row + row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
    return f", in {'row' if len(rows) == 1 else 'rows'} {shown} of this process's batch"
