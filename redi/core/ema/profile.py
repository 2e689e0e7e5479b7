"""The weights that power-function averages give to the steps of a run, and how such averages combine.

After t steps the average with exponent gamma gives step tau <= t the weight (gamma + 1) tau^gamma / t^(gamma + 1)
(EDM2: Karras et al., arXiv 2312.02696, section 3.1). The standard deviation of this density as a part of the run,
sigma_rel, is the average's length: unlike a decay it means the same for a short run and a long one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of equal weights for all steps, gamma = 0; longer averages would weigh early steps more than late ones.
LONGEST = 12**-0.5


def exponent(sigma_rel: float) -> float:
    """gamma of a relative deviation in (0, 12^-1/2], which is (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2."""
    inverse = sigma_rel**-2.0  # (gamma + 2)^2 (gamma + 3) = inverse (gamma + 1), as a polynomial:
    return float(max(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max(), 0.0))


def check_sigma_rel(value: object, where: str) -> float:
    """The value as a float. Raises ValueError, with `where` it was given, unless it is a number in (0, 12^-1/2]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
        length = f"a part of the training: greater than 0 and at most {LONGEST:.4f} (all steps alike)"
        raise ValueError(f"{where}: {value!r} is no length of an average, which is {length}")
    return float(value)


@dataclass(frozen=True)
class Combination:
    """How one average is made of others."""

    weights: np.ndarray  # of the others, (n,); their sum is 1
    error: float  # of its density, relative to the one that was wanted: root of the integral of the squares

    @property
    def noise(self) -> float:
        """The rounding error of the sum relative to that of the others, which are independent."""
        return float(np.linalg.norm(self.weights))


def combine(stored: Sequence[tuple[float, int]], wanted: tuple[float, int]) -> Combination:
    """The sum of stored averages whose density comes closest to the one wanted, by least squares (section 3.2 and
    appendix C). Averages are given by (sigma_rel, step).

    Beyond the paper the weights sum to 1: without that, a short list of snapshots shrinks all parameters by some per
    cent.
    """
    sigmas, steps = np.array(stored, dtype=np.float64).T
    gammas = np.array([exponent(sigma) for sigma in sigmas])
    goal = exponent(wanted[0]), float(wanted[1])
    products = _product(gammas[:, None], steps[:, None], gammas, steps)  # (n, n)
    towards = _product(gammas, steps, *goal)  # (n,)
    # Scaled to densities of length 1, which range over orders of magnitude; the last row is the sum.
    scale = np.diag(products) ** -0.5
    system = np.block([[products * scale[:, None] * scale, scale[:, None]], [scale, np.zeros(1)]])
    solution = np.linalg.solve(system, np.append(towards * scale, 1.0))
    weights = solution[:-1] * scale
    length = _product(*goal, *goal)
    square = (length - 2 * weights @ towards + weights @ products @ weights) / length
    return Combination(weights, float(max(square, 0.0) ** 0.5))


def _product(gamma_a, step_a, gamma_b, step_b):
    """The integral of the product of two densities, over the steps that both have."""
    until = np.minimum(step_a, step_b)
    common = (until / step_a) ** (gamma_a + 1) * (until / step_b) ** (gamma_b + 1) / until  # no large power of a step
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * common
