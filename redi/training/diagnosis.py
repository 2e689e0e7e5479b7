"""Why a step of a training was skipped: it is taken once more, with an eye on every module."""

from contextlib import closing
from pathlib import Path

from redi.data.loader import batches, positions_of
from redi.runtime.checkpoint import list_checkpoints
from redi.training.nonfinite import PHASES, Finding, SkipGuard, explain, stop_message, write_finding
from redi.training.step import TrainingStep


def diagnosed(run_dir: Path, skipped: SkipGuard, take_step: TrainingStep, dataset, reading: dict) -> str:
    """Where the first number arose that is not finite: what training ends with. All processes call it.

    The last skipped step is taken once more, on the same data with the weights of now.

    Args:
        reading: how `batches` read it.
    """
    step = skipped.last
    device, processes = next(take_step.model.parameters()).device, take_step.processes
    with closing(batches(dataset, start=step, stop=step + 1, **reading)) as data:
        batch = {name: tensor.to(device) for name, tensor in next(data).items()}
    findings = [
        explain(take_step.model, losses, x, first_row=first_row)
        for first_row, x, losses in take_step.repeated(batch, step)
    ]
    finding = min(findings, key=_order)
    positions, names = positions_of(dataset, step=step, **reading), getattr(dataset, "names", None)
    named = None if names is None else [names[position] for position in positions]
    path = write_finding(run_dir, step, processes.rank, finding, positions, named)
    keys = [(named or positions)[row] for row in finding.rows]
    message = stop_message(step, skipped, finding, keys, path, next(iter(list_checkpoints(run_dir)[::-1]), None))
    said = processes.gathered((_order(finding), message))
    # Whose rows are to blame: by FSDP's exchange the others have gradients that are not finite too.
    rank = min(range(len(said)), key=lambda rank: said[rank][0])
    return (f"rank {rank}: " if processes.size > 1 else "") + said[rank][1]


def _order(finding: Finding) -> int:
    return PHASES.index(finding.phase)
