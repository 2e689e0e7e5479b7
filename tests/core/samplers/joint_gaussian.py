"""Correlated Gaussian groups, for which the joint field and the joint moments of every sampler are known exactly."""

import torch

MEAN = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
FACTOR = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]], dtype=torch.float64)


def marginal(process, s, size):
    """Mean (C,) and covariance (C, C) of the state at s: alpha x + sigma noise, channel by channel."""
    ones = torch.ones(1, size, 1, 1, dtype=torch.float64)
    alpha, sigma = ((coefficient * ones).flatten() for coefficient in (process.alpha(s), process.sigma(s)))
    factor = FACTOR[:size, :size]
    return alpha * MEAN[:size], alpha[:, None] * (factor @ factor.T) * alpha + torch.diag(sigma**2)


def exact_field(process, size, calls=None):
    """The expected prediction, from E[x | x_t] and E[noise | x_t] of the joint distribution."""
    covariance = FACTOR[:size, :size] @ FACTOR[:size, :size].T

    def denoise(x, s):
        if calls is not None:
            calls.append(s)
        mean, joint = marginal(process, s, size)
        ones = torch.ones(1, size, 1, 1, dtype=torch.float64)
        alpha, sigma = ((coefficient * ones).flatten() for coefficient in (process.alpha(s), process.sigma(s)))
        weights = torch.linalg.solve(joint, (x[:, :, 0, 0].double() - mean).T).T
        data, noise = MEAN[:size] + (weights * alpha) @ covariance, weights * sigma
        return process.target(data[:, :, None, None], noise[:, :, None, None], s).to(x)

    return denoise


def trajectory_moments(sampler, process, size, num_draws=1, dtype=torch.float64):
    """Exact (s, mean, covariance) of every state of a sampler: it is affine, so it is run on each unit of noise."""
    rows = num_draws * size
    units = torch.cat([torch.zeros(1, rows, dtype=dtype), torch.eye(rows, dtype=dtype)])
    draws = iter(units.reshape(rows + 1, num_draws, size, 1, 1).unbind(1))
    states: list = []
    sampler(exact_field(process, size), process, draws.__next__, trajectory=states)
    flat = [(s, x[:, :, 0, 0]) for s, x in states]
    return [(s, x[0], (x[1:] - x[0]).T @ (x[1:] - x[0])) for s, x in flat]
