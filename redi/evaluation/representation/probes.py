"""Probes: the accuracy of simple classifiers on features. Both classifiers are scikit-learn's."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

PROBES = ("linear_probe", "knn")


@dataclass
class Labelled:
    """One feature vector and one label per image."""

    features: Tensor  # (N, E) float32, on the CPU
    labels: Tensor  # (N,) int64

    def __post_init__(self):
        if self.features.ndim != 2 or len(self.features) != len(self.labels):
            shapes = tuple(self.features.shape), tuple(self.labels.shape)
            raise ValueError(f"features {shapes[0]} and labels {shapes[1]}: a probe needs (N, E) and (N,)")
        if not self.features.isfinite().all():
            raise ValueError("features hold NaN or infinite values: a probe needs finite features")

    def __len__(self) -> int:
        return len(self.labels)


def linear_probe(train: Labelled, *, max_iterations: int = 500):
    """Fit scikit-learn's LogisticRegression (C = 1) on standardised features. Raises ValueError for a single class."""
    # Imported here because it takes a second, which would delay every training run.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported below, once
        probe.fit(*_arrays(train, least_classes=2))
    if probe[-1].n_iter_.max() >= max_iterations:
        log.warning("a linear probe has not converged after %d iterations", max_iterations)
    return probe


def knn(train: Labelled, *, k: int | None = None):
    """Fit scikit-learn's KNeighborsClassifier with cosine distances of centred features. k: see `num_neighbours`."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    k = num_neighbours(train.labels) if k is None else k
    probe = make_pipeline(StandardScaler(with_std=False), KNeighborsClassifier(k, metric="cosine"))
    return probe.fit(*_arrays(train, least_classes=2))


def num_neighbours(labels: Tensor) -> int:
    """Return 20, the usual k for frozen features, but at most the average number of images per class."""
    return max(1, min(20, len(labels) // len(labels.unique())))


def accuracy(probe, test: Labelled) -> float:
    """Return the accuracy of a fitted probe on `test`."""
    return float(probe.score(*_arrays(test)))


def chance(labels: Tensor) -> float:
    """Return the accuracy of always predicting the most frequent label."""
    return int(labels.unique(return_counts=True)[1].max()) / len(labels)


def probe_both_ways(train: Labelled, generated: Labelled, tests: Mapping[str, Labelled]) -> dict[str, dict]:
    """Train both probes on real and on generated features; return {probe: {test: accuracy, ...}}.

    Probes are trained on `train`. "from_generated": the accuracy on tests["held_out"] after training on `generated`.
    """
    accuracies = {}
    fits: tuple[Callable[[Labelled], Any], ...] = (linear_probe, knn)
    for name, fit in zip(PROBES, fits, strict=True):
        probe = fit(train)
        accuracies[name] = {test: accuracy(probe, labelled) for test, labelled in tests.items()}
        accuracies[name]["from_generated"] = accuracy(fit(generated), tests["held_out"])
    return accuracies


def _arrays(labelled: Labelled, least_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    if len(labelled.labels.unique()) < least_classes:
        raise ValueError("a probe needs training images of at least two classes")
    return labelled.features.double().numpy(), labelled.labels.to(torch.int64).numpy()
