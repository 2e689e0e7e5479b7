"""A self-test before every evaluation: metrics must not confuse samples and reference."""

import torch

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.inception_score import inception_score
from redi.evaluation.metrics.precision_recall import precision_recall


def check_direction() -> None:
    """Evaluate samples that cover one of two modes of the reference: precision must be 1 and recall 1/2.

    Raises RuntimeError: a metric returns swapped values or accepts swapped sets.
    """
    mode = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.0])  # (8, 2), a line
    sets = mode, torch.cat([mode, mode + torch.tensor([0.0, 1000.0])])
    samples = Features("samples", {"pooled": sets[0], "logits": sets[0]})
    reference = Features("reference", {"pooled": sets[1], "logits": sets[1]})
    result = precision_recall(samples=samples, reference=reference)
    if result != {"precision": 1.0, "recall": 0.5}:
        raise RuntimeError(
            f"precision_recall returns {result} instead of precision 1 and recall 0.5 for samples that cover half of "
            "the reference: it swaps the two sets or is broken, so nothing was evaluated"
        )
    for name, swapped in {
        "precision_recall": lambda: precision_recall(samples=reference, reference=samples),
        "inception_score": lambda: inception_score(reference, num_splits=1),
    }.items():
        try:
            swapped()
        except ValueError:
            continue
        raise RuntimeError(f"{name} accepts the reference as samples without an error, so nothing was evaluated")
