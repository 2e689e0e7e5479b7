"""DDPM's arithmetic in float64 against Gaussian algebra, torch.distributions and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal

from redi.core.channels import Channels
from redi.core.processes.ddpm import DDPM, discretised_log_likelihood, kl_divergence

CHANNELS = Channels(image=1, z=1)


def data_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))


def ddpm(variance="small", learned=(), **settings):
    return DDPM(variance=variance, learned_variance=learned, **settings).for_channels(CHANNELS)


def betas(num_timesteps=1000):
    return np.linspace(1e-4, 0.02, num_timesteps)


def test_ddpm_s_noise_levels_are_products_of_its_steps():
    process = ddpm()
    product = 1.0
    for k, beta in enumerate(betas()):
        product *= 1 - beta
        t = process.time(k + 1)
        assert process.alpha(t) ** 2 == pytest.approx(product, rel=1e-12)
        assert process.sigma(t) ** 2 == pytest.approx(1 - product, rel=1e-9)
        assert process.model_time(torch.tensor([t], dtype=torch.float64)).item() == k


def test_the_betas_are_those_of_the_timesteps():
    process = ddpm(num_timesteps=7, beta_min=0.01, beta_max=0.3)
    assert process.betas.tolist() == pytest.approx(np.linspace(0.01, 0.3, 7).tolist())
    for k, product in enumerate((1 - process.betas).cumprod(0).tolist()):
        t = 1 - (k + 1) / 7
        assert process.alpha_cumprod(t) == pytest.approx(product, rel=1e-12)
        assert process.model_time(torch.tensor([t])).item() == k
    assert "betas" not in process.provenance()


@pytest.mark.parametrize(("k", "j"), [(2, 1), (10, 9), (500, 480), (999, 0)])
def test_ddpm_s_posterior_is_bayes_rule(k, j):
    """q(x_s | x_t, x) from q(x_s | x) = N(a_s x, v_s) and q(x_t | x_s) = N(c x_s, w): the product of two Gaussians."""
    process, (data, x_t) = ddpm(), data_and_noise()
    kept = 1 - betas()
    a_s2, c2 = np.prod(kept[: j + 1]), np.prod(kept[j + 1 : k + 1])
    precision = 1 / (1 - a_s2) + c2 / (1 - c2)
    expected = (math.sqrt(a_s2) * data / (1 - a_s2) + math.sqrt(c2) * x_t / (1 - c2)) / precision
    mean, log_variance = process.posterior(data, x_t, process.time(k + 1), process.time(j + 1))
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    assert math.exp(log_variance) == pytest.approx(1 / precision, rel=1e-9)


def test_the_bounds_of_a_learned_variance_are_beta_and_the_posterior_s():
    process, (x_t, noise) = ddpm(learned=("z",)), data_and_noise()
    t, s = process.time(500), process.time(499)
    beta = betas()[499]
    abar_t, abar_s = np.prod(1 - betas()[:500]), np.prod(1 - betas()[:499])
    for value, expected in ((1.0, beta), (-1.0, beta * (1 - abar_s) / (1 - abar_t))):
        prediction = torch.cat([noise, torch.full_like(noise[:, :1], value)], dim=1)
        log_variance = process.reverse_step(prediction, x_t, t, s)[1]
        torch.testing.assert_close(log_variance[:, 1].exp(), torch.full_like(x_t[:, 1], expected))
        # The image's is not learned, and small.
        small = torch.full_like(x_t[:, 0], beta * (1 - abar_s) / (1 - abar_t))
        torch.testing.assert_close(log_variance[:, 0].exp(), small)


def test_the_divergence_of_gaussians_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean1, log1, mean2, log2 = (torch.randn(100, generator=generator, dtype=torch.float64) for _ in range(4))
    first, second = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean1, log1), (mean2, log2)))
    expected = torch.distributions.kl_divergence(first, second)
    torch.testing.assert_close(kl_divergence(mean1, log1, mean2, log2), expected, rtol=1e-10, atol=1e-12)


def test_the_discretised_likelihood_is_the_mass_of_the_bin():
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean, deviation = (torch.tensor(value, dtype=torch.float64) for value in (0.3, 0.2))
    found = discretised_log_likelihood(x, mean, 2 * deviation.log()).exp()
    edges = np.concatenate([[-np.inf], (x[1:] - 1 / 255).numpy(), [np.inf]])
    expected = np.diff(normal(0.3, 0.2).cdf(edges))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=2e-12)  # masses are clamped at 1e-12
    assert found.sum().item() == pytest.approx(1, abs=1e-9)


def test_the_bound_over_all_steps_is_that_of_the_exact_predictor_computed_directly():
    """Data N(0, 1) keeps every marginal N(0, 1): E[noise | x_t] = sigma x_t, and both Gaussians are known."""
    num_timesteps = 20
    process = DDPM(num_timesteps=num_timesteps, beta_max=0.2, learned_variance=("z",)).for_channels(CHANNELS)
    x, noise = data_and_noise()
    total, expected, kept = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0
    for k, beta in enumerate(np.linspace(1e-4, 0.2, num_timesteps)):
        before, kept = kept, kept * (1 - beta)
        t = torch.full((3, 1, 1, 1), process.time(k + 1), dtype=torch.float64)
        x_t = math.sqrt(kept) * x + math.sqrt(1 - kept) * noise
        largest = torch.ones_like(x_t[:, :1])  # share 1: log beta
        prediction = torch.cat([math.sqrt(1 - kept) * x_t, largest], dim=1)
        total += process.variational_bound(prediction, x, x_t, t)["z"]
        # The reverse mean is posterior(E[x | x_t]) with E[x | x_t] = sqrt(kept) x_t.
        of_data, of_x_t = math.sqrt(before) * beta / (1 - kept), math.sqrt(1 - beta) * (1 - before) / (1 - kept)
        mean = of_data * math.sqrt(kept) * x_t + of_x_t * x_t
        model = torch.distributions.Normal(mean, math.sqrt(beta))
        if k == 0:
            edges = (x - 1 / 255, x + 1 / 255)
            lower, upper = (model.cdf(edge) for edge in edges)
            mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
            step = -mass.clamp(min=1e-12).log()
        else:
            true = torch.distributions.Normal(of_data * x + of_x_t * x_t, math.sqrt(beta * (1 - before) / (1 - kept)))
            step = torch.distributions.kl_divergence(true, model)
        expected += step[:, 1:].mean(dim=(1, 2, 3)) / math.log(2)
    torch.testing.assert_close(total, expected, rtol=1e-8, atol=1e-8)


def test_the_bound_s_gradient_reaches_the_variance_and_not_the_mean():
    process, (x, noise) = ddpm(learned=None), data_and_noise()
    t = torch.full((3, 1, 1, 1), process.time(300), dtype=torch.float64)
    prediction = torch.cat([noise, torch.zeros_like(noise)], dim=1).requires_grad_()
    x_t = process.corrupt(x, noise, t)[0]
    sum(bound.sum() for bound in process.variational_bound(prediction, x, x_t, t).values()).backward()
    assert (prediction.grad[:, :2] == 0).all()
    assert (prediction.grad[:, 2:] != 0).all()


def test_a_process_without_channels_takes_every_variance_as_learned_or_refuses():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prediction = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    bound = DDPM().for_channels(Channels(image=1, z=2))
    for own, theirs in zip(
        DDPM().reverse_step(prediction, x, 0.5, 0.6), bound.reverse_step(prediction, x, 0.5, 0.6), strict=True
    ):
        assert torch.equal(own, theirs)
    with pytest.raises(ValueError, match="has 3 channels: must have 3 for the noise and 3 for learned variances"):
        DDPM().reverse_step(prediction[:, :3], x, 0.5, 0.6)
    with pytest.raises(ValueError, match="for_channels"):
        DDPM(learned_variance=("image",)).reverse_step(prediction, x, 0.5, 0.6)
