"""Non-finite gradients: count the skipped steps, and find the cause if there are too many."""

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from redi.data.loader import batches, positions_of
from redi.runtime.artefact import write_json
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.log import AsyncScalars
from redi.runtime.ranges import check_number
from redi.training.step import TrainingStep

log = logging.getLogger(__name__)

PHASES = ("input", "weights", "forward", "loss", "backward", "gradient", "norm", "none")  # in the order of a step
ADVICE = {
    "input": "Inspect these images, and check the cache by running redi.prepare with prepare.verify = True",
    "weights": "Rerun the same command to resume from the checkpoint",
    "none": "Rerun the same command; if the error recurs, suspect this machine's memory or GPU",
}
LOWER = "Lower the learning rate, set train.precision = 'float32', or set train.max_grad_norm = 1.0 if it is 0"


class SkipGuard:
    """Counts the steps that were skipped because their gradient was not finite.

    A checkpoint resets the count, except for the skipped steps in a row right before it, so that a run that skips every
    step ends. Steps count from 0 here and from 1 in messages.
    """

    def __init__(self, max_skipped: int, *, warns: bool = True):
        check_number("train.max_skipped_steps", max_skipped, 0)
        self.max_skipped, self.warns = max_skipped, warns
        self.count, self.streak = 0, 0  # since the last checkpoint; in a row
        self.last: int | None = None  # the last skipped step
        self.pending: list[tuple[int, AsyncScalars]] = []

    def add(self, step: int, skipped: Tensor) -> None:
        """Queue the result of a step without waiting for the device; `skipped` () is 1 if it was skipped."""
        self.pending.append((step, AsyncScalars({"skipped": skipped})))

    def exceeded(self) -> bool:
        """Count the queued steps, waiting for the device; return whether too many were skipped."""
        for step, scalars in self.pending:
            skipped = bool(scalars.get()["skipped"])
            self.count, self.streak = self.count + skipped, self.streak + 1 if skipped else 0
            self.last = step if skipped else self.last
            if skipped and self.warns and (self.count <= 3 or self.count & (self.count - 1) == 0):  # 4, 8, 16, ...
                log.warning(
                    "step %d is skipped because its gradient is not finite; the weights are unchanged "
                    "(%d of at most %d since the last checkpoint)", step + 1, self.count, self.max_skipped,
                )  # fmt: skip
        self.pending.clear()
        return self.count > self.max_skipped

    def reset(self) -> None:
        """Reset the count after a checkpoint."""
        self.count = self.streak


class Finding(NamedTuple):
    """Where the first non-finite value arose."""

    phase: str  # one of PHASES
    module: str = ""  # name of the module; "" for the model itself, or if no module is the cause
    text: str = ""
    rows: list[int] = []  # rows of the batch with non-finite values


NONE = Finding("none", "", "when the step is computed again, all values are finite, so a hardware fault is likely")


def explain(model: nn.Module, losses: Callable[[], dict[str, Tensor]], x: Tensor) -> Finding:
    """Compute a step's losses again, uncompiled, and name the first module with non-finite values.

    Under FSDP all processes call it, because the passes communicate. The model's gradients are dropped.

    Args:
        model: not wrapped in DistributedDataParallel; may be sharded by `fully_shard`.
        losses: computes the losses; they include "loss".
        x: the clean states (n, C, H, W) of the pass.
    """
    model.zero_grad(set_to_none=True)
    first: dict[str, Finding] = {}  # by phase
    if bad := [name for name, value in model.named_parameters() if not is_finite(value)]:
        first["weights"] = Finding("weights", bad[0].rpartition(".")[0], f"the weight {bad[0]} is not finite")

    def check(value: Tensor, phase: str, module: str, text: str) -> None:
        if phase not in first and not is_finite(value):
            rows = []
            if value.shape[:1] == x.shape[:1]:
                rows = (~value.detach().isfinite()).reshape(len(x), -1).any(1).nonzero().flatten().tolist()
            first[phase] = Finding(phase, module, f"{text} is not finite", rows)

    def watch(name: str, module: nn.Module, _args, output) -> None:
        what = f"the output of {name or 'the model'} ({type(module).__name__})"
        for value in (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
            check(value, "forward", name, what)
            if value.requires_grad:
                value.register_hook(lambda gradient: check(gradient, "backward", name, f"the gradient of {what}"))

    check(x, "input", "", "the model's input")
    with ExitStack() as hooks:
        if "torch._dynamo" in sys.modules:  # importing it takes seconds; if it is not loaded, nothing is compiled
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(watch, name)).remove)
        try:
            values = losses()
            values["loss"].backward()
        except torch.OutOfMemoryError:
            values, first["none"] = {}, Finding("none", "", "not enough memory to compute the step again")
    gradients = {name: local(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for name, value in values.items():
        check(value, "loss", "", f"the model's output is finite, but its loss {name!r}")
    for name, gradient in gradients.items():
        check(gradient, "gradient", name.rpartition(".")[0], f"the gradient of {name}")
    norm = torch.stack([g.float().square().sum() for g in gradients.values()] or [torch.zeros(())]).sum()
    check(norm, "norm", "", "every gradient is finite, but the gradient norm")
    return next((first[phase] for phase in PHASES if phase in first), NONE)


def diagnosis(run_dir: Path, skipped: SkipGuard, take_step: TrainingStep, dataset, reading: dict) -> str:
    """Repeat the last skipped step with the current weights; return the error message that ends training.

    All processes call it. Each rank writes details to `nonfinite_step_<step>.json`. `reading`: arguments of `batches`.
    """
    step, processes = skipped.last, take_step.processes
    assert step is not None
    device = next(take_step.model.parameters()).device
    data = batches(dataset, start=step, stop=step + 1, **reading)
    with closing(data):
        batch = {name: tensor.to(device) for name, tensor in next(data).items()}
    findings = []
    for first_row, x, losses in take_step.repeated(batch, step):
        finding = explain(take_step.model, losses, x)
        findings.append(finding._replace(rows=[first_row + row for row in finding.rows]))
    finding = min(findings, key=lambda finding: PHASES.index(finding.phase))
    positions = positions_of(dataset, step=step, **reading)
    names = getattr(dataset, "names", None)
    names = positions if names is None else [names[position] for position in positions]
    images = [names[row] for row in finding.rows]
    path = run_dir / f"nonfinite_step_{step + 1:08d}{f'_rank_{processes.rank}' if processes.rank else ''}.json"
    write_json(path, {"step": step + 1, "rank": processes.rank, **finding._asdict(), "images": images, "batch": names})
    examples = ", ".join(map(str, images[:5])) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
    newest = list_checkpoints(run_dir)[-1:]
    message = (
        f"{skipped.count} steps had a non-finite gradient since the last checkpoint, more than "
        f"train.max_skipped_steps = {skipped.max_skipped}. Step {step + 1}: {finding.text}"
        f"{f' (images {examples} of the data set)' if images else ''}; details in {path}. Skipped steps did not change "
        f"the weights, and {f'{newest[0]} is good' if newest else 'there is no checkpoint yet'}. "
        f"{ADVICE.get(finding.phase, LOWER)}"
    )
    # FSDP exchanges gradients, so those of all ranks are non-finite. The rank with the earliest phase is the cause.
    _, rank, message = min(processes.gathered((PHASES.index(finding.phase), processes.rank, message)))
    return f"rank {rank}: {message}" if processes.size > 1 else message


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of this process's part are finite."""
    return bool(local(tensor).isfinite().all())
