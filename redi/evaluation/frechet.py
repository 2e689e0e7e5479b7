"""The Fréchet distance between two sets of features."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Gaussian:
    """Mean (E,) and covariance (E, E) in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Of features (N, E); at least two of them."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"a Gaussian needs features (N >= 2, E), got {tuple(features.shape)}")
        return cls(features.double().mean(dim=0), torch.atleast_2d(torch.cov(features.double().T)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) (Dowson & Landau 1982; Heusel et al., arXiv 1706.08500).

    tr (A B)^1/2 is the nuclear norm of A^1/2 B^1/2, which needs no square root of an unsymmetric matrix and is
    exact for singular covariances.
    """
    cross = torch.linalg.matrix_norm(_root(a.covariance) @ _root(b.covariance), ord="nuc")
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float(distance.clamp(min=0))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
