"""Divergence and likelihood of Gaussians, for the variational bound."""

import math

import torch
from torch import Tensor


def kl_divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) || N(mean2, variance2)) elementwise, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log of the mass that N(mean, variance) puts into the bin of x, elementwise, in nats.

    Bins as of 8-bit data in [-1, 1]: 2/255 wide, the first and the last open (Ho et al., arXiv 2006.11239, Eq. 13).
    """
    deviation = torch.exp(-0.5 * log_variance)
    upper = _normal_cdf((x - mean + 1 / 255) * deviation)
    lower = _normal_cdf((x - mean - 1 / 255) * deviation)
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))
