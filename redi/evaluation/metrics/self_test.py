"""A check, before every evaluation, that metrics with a direction answer in the right one."""

import torch

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.inception_score import inception_score
from redi.evaluation.metrics.precision_recall import precision_recall


def check_direction() -> None:
    """Evaluates samples that cover one of the reference's two modes: precision is 1, recall 1/2.

    With the sets exchanged it would be the other way round, and the numbers would look as plausible. Raises
    RuntimeError for a metric that answers the other way, or takes sets of the wrong role.
    """
    mode = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.0])  # (8, 2), a line
    sets = mode, torch.cat([mode, mode + torch.tensor([0.0, 1000.0])])
    samples, reference = (
        Features(role, {"pooled": rows, "logits": rows})
        for role, rows in zip(("samples", "reference"), sets, strict=True)
    )
    answer = precision_recall(samples=samples, reference=reference)
    if answer != {"precision": 1.0, "recall": 0.5}:
        raise RuntimeError(
            f"precision_recall gives {answer} for samples that cover half of the reference, instead of precision 1 and "
            "recall 0.5: its two sets have changed places, or it is broken; nothing was evaluated"
        )
    for name, swapped in {
        "precision_recall": lambda: precision_recall(samples=reference, reference=samples),
        "inception_score": lambda: inception_score(reference, num_splits=1),
    }.items():
        try:
            swapped()
        except ValueError:
            continue
        raise RuntimeError(f"{name} takes the reference for samples without a word: nothing was evaluated")
