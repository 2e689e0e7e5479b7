"""The Fréchet distance between two sets of features, and its error and bias for a finite number of samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from redi.evaluation.metrics.features import Features, check_widths, rows
from redi.models.reducers.moments import Moments


@dataclass
class Gaussian:
    """Mean (P,) and covariance (P, P) in float64; `count` is the number of images, None if unknown."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Fit features (N, P). Raises ValueError for fewer than two rows, and for NaN or infinite values."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape {tuple(features.shape)}: a Gaussian needs (N, P) with N >= 2")
        return cls.merged([_moments(features)])

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> "Gaussian":
        """Return the Gaussian of the union of several parts."""
        total = Moments()
        for part in parts:
            total.merge(part)
        assert isinstance(total.mean, Tensor)  # there is at least one part
        return cls(total.mean, total.covariance, total.count)


def frechet_distance(samples: Features | Gaussian, reference: Features | Gaussian, *, name: str = "pooled") -> float:
    """Return `|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2)` (Dowson & Landau 1982; Heusel et al., arXiv 1706.08500).

    tr (A B)^1/2 is computed as the nuclear norm of A^1/2 B^1/2. This is exact for singular covariances too, for example
    if there are fewer images than features.

    Args:
        name: the features to compare: "pooled", or "spatial" for sFID.

    Raises ValueError: swapped roles, different widths, fewer than two images, or values that are not finite.
    """
    a, b = _gaussian(samples, "samples", name), _gaussian(reference, "reference", name)
    check_widths(len(a.mean), len(b.mean))
    cross = torch.linalg.matrix_norm(_root(a.covariance) @ _root(b.covariance), ord="nuc")
    return float(_distance(a, b, cross).clamp(min=0))


def finite_sample_error(
    samples: Features | Tensor, reference: Features | Gaussian, *, name: str = "pooled", num_groups: int = 10,
    seed: int = 0,
) -> dict:  # fmt: skip
    """Estimate the error and bias of the distance that are due to the finite number of samples, for a fixed reference.

    The value at infinity is the intercept of a line in 1/N, fitted to the mean distances of all samples, of nine tenths
    of them, and of halves (the smaller parts of Chong & Forsyth bend the line if N < 10 P). It can be negative.
    Distances are computed from the eigenvalues of B^1/2 A B^1/2, faster than in `frechet_distance`. Their error is
    about 1e-7 of the traces if A is singular.

    Returns:
        "standard_error": standard error of the distance (delete-a-group jackknife). "value_at_infinity": the distance
        for infinitely many samples (Chong & Forsyth, arXiv 1911.07023). "bias": the distance minus that value.
        "warnings": a list, if there are any. With fewer than 2 * num_groups samples, there are only warnings.

    Raises ValueError: as `frechet_distance`; fewer than two groups, or an odd number.
    """
    if num_groups < 2 or num_groups % 2:
        raise ValueError(f"finite_sample_error: num_groups = {num_groups}: must be even and at least 2")
    if isinstance(samples, Tensor):
        samples = Features("samples", {name: samples})
    features, fixed = rows(samples, "samples", name), _gaussian(reference, "reference", name)
    check_widths(features.shape[1], len(fixed.mean))
    warnings = _warnings(features, fixed)
    record = {"warnings": warnings} if warnings else {}
    if len(features) < 2 * num_groups:
        return record
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    groups = [_moments(features[part]) for part in order.tensor_split(num_groups)]
    root = _root(fixed.covariance)

    def measure(parts: Sequence[Moments]) -> float:
        gaussian = Gaussian.merged(parts)
        product = root @ gaussian.covariance @ root
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        return float(_distance(gaussian, fixed, cross))

    half, count = num_groups // 2, len(features)
    whole = measure(groups)
    deleted = [measure(groups[:i] + groups[i + 1 :]) for i in range(num_groups)]
    variance = (num_groups - 1) / num_groups * np.square(np.subtract(deleted, np.mean(deleted))).sum()
    sizes = np.array([1 / count, 1 / (count * (1 - 1 / num_groups)), 2 / count])
    means = np.array([whole, np.mean(deleted), np.mean([measure(groups[:half]), measure(groups[half:])])])
    intercept = np.polyfit(sizes, means, 1)[1]
    return {
        "standard_error": float(np.sqrt(variance)),
        "value_at_infinity": float(intercept),
        "bias": float(whole - intercept),
    } | record


def _moments(features: Tensor) -> Moments:
    moments = Moments()
    moments.add(features[:, :, None, None])
    return moments


def _distance(a: Gaussian, b: Gaussian, cross: Tensor) -> Tensor:
    return (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross


def _gaussian(features: Features | Gaussian, role: Literal["samples", "reference"], name: str) -> Gaussian:
    return features if isinstance(features, Gaussian) else Gaussian.of(rows(features, role, name))


def _warnings(features: Tensor, reference: Gaussian) -> list[str]:
    counts, width = {"samples": len(features), "reference images": reference.count}, features.shape[1]
    return [
        f"{count} {what} are fewer than the {width} features, so their covariance has at most rank {count - 1}: the "
        "distance is biased upward, the extrapolation is rough, and both depend strongly on the number of images"
        for what, count in counts.items()
        if count is not None and count <= width
    ]


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
