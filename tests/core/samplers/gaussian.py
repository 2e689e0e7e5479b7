"""Gaussian data, for which the field and the samples of every sampler are known exactly."""

import torch

MEAN, STD = 0.7, 0.5


def exact_field(process):
    """The expected prediction for data N(MEAN, STD^2): E[data | x_t] and E[noise | x_t] are affine in x_t."""

    def denoise(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        deviation = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return process.target(MEAN + alpha * STD**2 * deviation, sigma * deviation, t)

    return denoise


def moments(sampler, process, spare: int = 2):
    """Exact mean and variance of each of two channels of the samples, (2,) each; a sampler that draws more than
    num_evaluations + `spare` times fails."""
    size = sampler.num_evaluations + spare
    drawn = iter(torch.eye(size + 1, dtype=torch.float64)[1:])  # one row a draw; sample 0 has no noise at all
    x = sampler(exact_field(process), process, lambda: next(drawn)[:, None, None, None].expand(-1, 2, 1, 1))
    mean = x[0].flatten()
    return mean, (x[1:].flatten(1) - mean).square().sum(dim=0)
