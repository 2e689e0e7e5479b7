"""Likelihoods against the analytic density of Gaussian data with the exact field."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from redi.core.channels import Channels, Vector
from redi.core.likelihood import log_likelihood
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.samplers.ode import FixedODE
from redi.guidance import guided
from redi.models.transformer import DiffusionTransformer

FACTOR = torch.tensor([[0.9, 0, 0, 0], [0.4, 0.6, 0, 0], [-0.3, 0.2, 0.5, 0], [0.1, -0.5, 0.3, 0.7]]).double()
COVARIANCE = FACTOR @ FACTOR.T
PROCESSES = {
    f"{path.__name__} {prediction}": path(prediction=prediction)
    for path in (FlowMatching, GVP, VP)
    for prediction in ("velocity", "noise", "score", "data")
}


def exact_field(process):
    """The expected prediction for data N(0, COVARIANCE) of 4 dimensions, (N, 2, 1, 2); groups may differ in time."""

    def denoise(x, t):
        alpha, sigma = (
            (torch.as_tensor(value).double() * torch.ones(1, 2, 1, 2)).flatten()
            for value in (process.alpha(t), process.sigma(t))
        )
        of_x_t = alpha[:, None] * COVARIANCE * alpha + torch.diag(sigma**2)
        deviation = torch.linalg.solve(of_x_t, x.flatten(1).double().T).T.to(x)
        data = (deviation * alpha.to(x)) @ COVARIANCE.to(x)
        noise = deviation * sigma.to(x)
        return process.target(data.view_as(x), noise.view_as(x), t)

    return denoise


def samples(num=6, seed=0):
    z = torch.randn(num, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z @ FACTOR.T).view(num, 2, 1, 2)


def analytic(x):
    return torch.from_numpy(multivariate_normal(cov=COVARIANCE.numpy()).logpdf(x.flatten(1).numpy())).reshape(-1)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_exact_trace_gives_the_analytic_density_of_a_correlated_gaussian(process):
    # The rest is the error of the margin of 1e-3 at a pole, where the state counts as data. VP leaves 1 % of noise.
    x = samples()
    found = log_likelihood(exact_field(process), process, x, exact=True, rtol=1e-6, atol=1e-6).log_likelihood
    poles = process.t_range() != (0.0, 1.0)
    torch.testing.assert_close(found, analytic(x), rtol=1e-3, atol=5e-3 if poles else 1e-4)


def test_a_smaller_margin_removes_what_remains():
    process, x = FlowMatching(prediction="score", margin=1e-6), samples()
    found = log_likelihood(exact_field(process), process, x, exact=True, rtol=1e-6, atol=1e-6).log_likelihood
    torch.testing.assert_close(found, analytic(x), rtol=0, atol=1e-4)


def test_groups_with_their_own_times_have_the_same_density():
    process = Shifted(process=GVP(), shift={"z": 0.5}).for_channels(Channels(image=1, z=1))
    x = samples()
    found = log_likelihood(exact_field(process), process, x, exact=True, rtol=1e-6, atol=1e-6).log_likelihood
    torch.testing.assert_close(found, analytic(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "num_steps"), [("rk4", 40), ("heun3", 80), ("midpoint", 200)])
def test_fixed_steps_give_the_density_too(method, num_steps):
    x = samples()
    found = log_likelihood(
        exact_field(FlowMatching()), FlowMatching(), x, exact=True, method=method, num_steps=num_steps
    )
    torch.testing.assert_close(found.log_likelihood, analytic(x), rtol=0, atol=2e-3)
    assert found.num_evaluations == num_steps * {"rk4": 4, "heun3": 3, "midpoint": 2}[method]


def test_float32_is_enough():
    x = samples()
    found = log_likelihood(exact_field(FlowMatching()), FlowMatching(), x.float(), exact=True).log_likelihood
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, analytic(x), rtol=0, atol=1e-3)


def test_hutchinson_s_estimate_is_unbiased():
    # 4,000 samples at one place, each with its own probe: the mean is within four standard errors.
    x = samples(1).expand(4000, -1, -1, -1)
    settings = {"method": "rk4", "num_steps": 10}
    process = FlowMatching()
    exact = log_likelihood(exact_field(process), process, x[:1], exact=True, **settings).log_likelihood
    found = log_likelihood(exact_field(process), process, x, **settings).log_likelihood
    assert 0.1 < found.std() < 10
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(4000)


def test_more_probes_lower_the_variance():
    x = samples(1).expand(1000, -1, -1, -1)
    one, nine = (
        log_likelihood(exact_field(GVP()), GVP(), x, method="rk4", num_steps=5, num_probes=num_probes).log_likelihood
        for num_probes in (1, 9)
    )
    assert float(nine.std()) == pytest.approx(float(one.std()) / 3, rel=0.15)  # 1,000 samples: 2 % each, and the tails


def test_a_sample_s_probes_are_a_function_of_seed_and_index():
    x, settings = samples(6), {"method": "rk4", "num_steps": 5, "seed": 3}
    field = exact_field(FlowMatching())
    together = log_likelihood(field, FlowMatching(), x, **settings).log_likelihood
    alone = log_likelihood(field, FlowMatching(), x[4:], first_index=4, **settings).log_likelihood
    torch.testing.assert_close(together[4:], alone, rtol=1e-10, atol=1e-10)
    other = log_likelihood(field, FlowMatching(), x, **(settings | {"seed": 4})).log_likelihood
    assert (other - together).abs().max() > 1e-2


def test_given_probes_take_the_place_of_the_seed_s():
    # The trace of a 4 x 4 matrix is the mean over all 16 sign vectors. Four orthogonal ones are enough.
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    x, field, settings = samples(), exact_field(GVP()), {"method": "rk4", "num_steps": 5}
    probes = signs.reshape(4, 1, 2, 1, 2).expand(4, *x.shape)
    found = log_likelihood(field, GVP(), x, probes=probes, **settings).log_likelihood
    exact = log_likelihood(field, GVP(), x, exact=True, **settings).log_likelihood
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{"probes": []}, {"probes": [torch.ones(6, 2, 1)]}, {"exact": True}])
def test_probes_that_do_not_fit_are_refused(settings):
    x = samples()
    with pytest.raises(ValueError, match=r"probes must be tensors of shape \(6, 2, 1, 2\)"):
        log_likelihood(exact_field(GVP()), GVP(), x, **({"probes": [torch.ones_like(x)]} | settings))


def test_the_noise_that_is_reached_leads_back_to_the_data():
    process, x, settings = FlowMatching(), samples(), {"method": "rk4", "num_steps": 50}
    noise = log_likelihood(exact_field(process), process, x, exact=True, **settings).noise
    again = FixedODE(num_evaluations=200, method="rk4")(exact_field(process), process, lambda: noise)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-5)


def test_bits_per_dimension_are_the_density_in_other_units():
    found = log_likelihood(exact_field(GVP()), GVP(), samples(), exact=True)
    torch.testing.assert_close(found.bits_per_dimension, -found.log_likelihood / 4 / math.log(2))


def test_the_evaluations_are_counted():
    calls, field = [], exact_field(GVP())
    found = log_likelihood(lambda x, t: calls.append(t) or field(x, t), GVP(), samples(), num_probes=3)
    assert found.num_evaluations == len(calls)


def test_a_trained_model_s_likelihood_is_found_through_guidance_without_a_trace_in_it():
    # The form of the docstring's example. The untrained network predicts 0, so the state does not change: N(0, 1).
    channels = Channels(image=1, z=1)
    model = DiffusionTransformer(
        channels=channels, grid=(4, 4), num_classes=3, width=16, depth=1, num_heads=2, patch_size=2
    ).requires_grad_(False)
    nn.init.normal_(next(model.parameters()))
    process = FlowMatching().for_channels(channels)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    denoise = guided(model, [], channels, labels, model.null_label, process.model_time)
    with torch.no_grad():
        found = log_likelihood(denoise, process, x, method="rk4", num_steps=2)
    expected = torch.distributions.Normal(0, 1).log_prob(x.double()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found.log_likelihood, expected)
    assert not x.requires_grad and all(p.grad is None for p in model.parameters())


def test_a_discrete_process_is_refused():
    with pytest.raises(ValueError, match="DDPM has discrete timesteps"):
        log_likelihood(lambda x, t: x, DDPM(), samples())


@pytest.mark.parametrize("settings", [{"method": "rk4"}, {"method": "dopri5", "num_steps": 5}, {"num_probes": 0}])
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(ValueError, match="method = |num_probes = 0"):
        log_likelihood(exact_field(GVP()), GVP(), samples(), **settings)


@pytest.mark.parametrize("settings", [{"exact": True}, {"probes": "signs"}], ids=["exact", "probes"])
def test_padding_of_a_vector_counts_neither_in_the_density_nor_in_the_dimensions(settings):
    # The image has two dimensions, the vector the other two of the Gaussian, and then two of padding.
    channels, field, x = Channels(image=1, token=Vector(2, channels=2)), exact_field(GVP()), samples()
    if settings.get("probes"):
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
        settings = {
            "probes": torch.cat([signs.view(4, 1, 2, 1, 2), torch.ones(4, 1, 1, 1, 2)], dim=2).repeat(1, 6, 1, 1, 1)
        }
    calls = []

    def with_padding(x, t):  # and with a prediction there
        calls.append(t)
        assert not x[:, 2].any()
        return torch.cat([field(x[:, :2], t), 3 + x[:, 2:]], dim=1)

    padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    found = log_likelihood(with_padding, GVP(), padded, channels=channels, rtol=1e-6, atol=1e-6, **settings)
    torch.testing.assert_close(found.log_likelihood, analytic(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bits_per_dimension, -analytic(x) / (4 * math.log(2)), rtol=1e-3, atol=1e-4)
    assert found.num_evaluations == len(calls) and not found.noise[:, 2].any()


def test_random_probes_leave_padding_out():
    channels, x = Channels(image=1, token=Vector(2, channels=2)), samples()
    padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    found = log_likelihood(lambda x, t: x, GVP(), padded, channels=channels, method="rk4", num_steps=2)
    alone = log_likelihood(lambda x, t: x, GVP(), x, method="rk4", num_steps=2)
    torch.testing.assert_close(found.log_likelihood, alone.log_likelihood)  # the trace of the identity is exact
