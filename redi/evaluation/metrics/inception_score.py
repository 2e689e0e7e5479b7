"""The Inception Score of a set of samples."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from redi.evaluation.metrics.features import Features, rows


class InceptionScore(NamedTuple):
    """Mean and population standard deviation over the splits."""

    mean: float
    std: float


def inception_score(logits: Features | Tensor, num_splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """Return exp(E KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498), averaged over equal parts of the samples.

    ADM's evaluation uses logits without bias ("logits" of `encoders.Inception`) and 10 splits of 50,000 samples.
    Samples are shuffled first, because each part would lack diversity if they were sorted by class.

    Args:
        logits: (N, K), or features of samples that include "logits".
        seed: seed of the shuffle; None keeps the order.

    Raises ValueError: features of a reference, no logits, values that are not finite, or fewer samples than splits.
    """
    if isinstance(logits, Tensor):
        logits = Features("samples", {"logits": logits})
    logits = rows(logits, "samples", "logits", least=1)
    if not 1 <= num_splits <= len(logits):
        raise ValueError(f"inception_score: num_splits = {num_splits}: must be between 1 and the {len(logits)} samples")
    if seed is not None:
        logits = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    bounds = [i * len(logits) // num_splits for i in range(num_splits + 1)]
    parts = (logits[start:stop] for start, stop in pairwise(bounds))
    scores = torch.tensor([_score(part) for part in parts], dtype=torch.float64)
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def _score(logits: Tensor) -> float:
    conditional = logits.double().log_softmax(dim=1)  # log p(y|x)
    marginal = conditional.logsumexp(dim=0) - math.log(len(logits))  # log p(y)
    return float((conditional.exp() * (conditional - marginal)).sum(dim=1).mean().exp())
