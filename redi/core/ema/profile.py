"""The profile of power-function averages over the steps of a run, and how to combine such averages.

After t steps the average with exponent gamma gives step tau <= t the weight (gamma + 1) tau^gamma / t^(gamma + 1)
(EDM2: Karras et al., arXiv 2312.02696, section 3.1). The length of the average, sigma_rel, is the standard deviation of
this density as a fraction of the run. Unlike a decay, it means the same for short and long runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Equal weights, gamma = 0. Longer averages would weight early steps more than late ones.
LONGEST = 12**-0.5


def exponent(sigma_rel: float) -> float:
    """Return gamma for sigma_rel = (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2 in (0, 12^-1/2].

    Examples:
        >>> round(exponent(0.05), 2), round(exponent(0.10), 2)  # the values of EDM2
        (16.97, 6.94)
    """
    inverse = sigma_rel**-2.0  # the root of (gamma + 2)^2 (gamma + 3) - inverse (gamma + 1)
    return float(max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max(), 0.0))


def check_sigma_rel(value: object, where: str) -> float:
    """Return the value as a float. Raises ValueError, naming `where`, unless it is a number in (0, 12^-1/2]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
        allowed = f"a fraction of the run, greater than 0 and at most {LONGEST:.4f} (equal weights)"
        raise ValueError(f"{where}: the length {value!r} of an average must be {allowed}")
    return float(value)


@dataclass(frozen=True)
class Combination:
    """Weights that combine stored averages into another one.

    Examples:
        >>> Combination(np.array([0.5, 0.5]), error=0.0).noise
        0.7071067811865476
    """

    weights: np.ndarray  # (n,), one per stored average; they sum to 1
    error: float  # L2 distance of the combined density from the target, relative to the norm of the target

    @property
    def noise(self) -> float:
        """Rounding error relative to that of one stored average, if the errors of the averages are independent."""
        return float(np.linalg.norm(self.weights))


def combine(stored: Sequence[tuple[float, int]], wanted: tuple[float, int]) -> Combination:
    """Return the combination of stored averages that fits the target `wanted` best (EDM2, section 3.2, appendix C).

    Averages are (sigma_rel, step). The fit minimizes the squared distance of the densities. Weights sum to 1, a
    constraint that EDM2 does not have: without it, combining few snapshots shrinks all parameters by a few percent.

    Examples:
        >>> combination = combine([(0.05, 1000), (0.1, 1000)], wanted=(0.1, 1000))
        >>> combination.weights.round(6) + 0.0, round(combination.error, 6)  # the target itself is stored
        (array([0., 1.]), 0.0)
    """
    sigmas, steps = np.array(stored, dtype=np.float64).T
    gammas = np.array([exponent(sigma) for sigma in sigmas])
    target = exponent(wanted[0]), float(wanted[1])
    products = _product(gammas[:, None], steps[:, None], gammas, steps)  # (n, n)
    target_products = _product(gammas, steps, *target)  # (n,)
    # Normalized, because the norms of the densities span orders of magnitude. The last row is the constraint.
    scale = np.diag(products) ** -0.5
    system = np.block([[products * scale[:, None] * scale, scale[:, None]], [scale, np.zeros(1)]])
    solution = np.linalg.solve(system, np.append(target_products * scale, 1.0))
    weights = solution[:-1] * scale
    norm = _product(*target, *target)
    square = (norm - 2 * weights @ target_products + weights @ products @ weights) / norm
    return Combination(weights, float(max(square, 0.0) ** 0.5))


def _product(gamma_a, step_a, gamma_b, step_b):
    """Return the integral of the product of two densities over the steps that both cover."""
    last = np.minimum(step_a, step_b)
    common = (last / step_a) ** (gamma_a + 1) * (last / step_b) ** (gamma_b + 1) / last  # ratios: no large powers
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * common
