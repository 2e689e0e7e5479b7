"""The samplers of the SDE on Gaussian data, whose exact field makes every sampler affine in its noise.

So no Monte Carlo is needed: run on draws that are 0 but for one number, a sampler shows the weight of every draw in
its result, and with them the exact mean and variance of its samples.
"""

import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.sde import DIFFUSION_FORMS, LAST_STEPS
from redi.core.samplers.stochastic_heun import StochasticHeun
from tests.core.samplers.gaussian import MEAN, STD, exact_field, moments

SAMPLERS = [EulerMaruyama, StochasticHeun]
PATHS = [FlowMatching, GVP, VP]
PREDICTIONS = ["velocity", "noise", "score", "data"]
every_sampler = pytest.mark.parametrize("sampler_class", SAMPLERS)
every_form = pytest.mark.parametrize("form", DIFFUSION_FORMS)
every_last_step = pytest.mark.parametrize("last_step", LAST_STEPS)
every_path = pytest.mark.parametrize("path", PATHS)


def shifted(path) -> Shifted:
    return Shifted(process=path, shift={"z": 0.5}).for_channels(Channels(image=1, z=1))


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_sampler
def test_every_form_and_last_step_is_finite_on_every_path_for_every_prediction(path, prediction, sampler_class):
    path = path(prediction=prediction)
    for process in (path, shifted(path)):
        field = exact_field(process)
        for form in DIFFUSION_FORMS:
            for last_step in LAST_STEPS:
                for num_evaluations in (1, 2, 7):
                    sampler = sampler_class(num_evaluations=num_evaluations, diffusion_form=form, last_step=last_step)
                    x = sampler(field, process, lambda: torch.ones(1, 2, 1, 1))
                    assert x.isfinite().all(), (process.provenance(), sampler.provenance())


def assert_the_moments_of_the_data(sampler, process):
    """To first order in the longest step h: the largest bias, of 'constant' with 'mean', is some 11 h of the variance.
    Without a last step, and on VP, a rest of noise is left, of 0.0105^2 at most."""
    mean, variance = moments(sampler, process)
    h = (1 if isinstance(sampler, EulerMaruyama) else 2) / sampler.num_evaluations
    assert (mean - MEAN).abs().max() < 3 * h
    assert (variance / STD**2 - 1).abs().max() < 12 * h + 0.01


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@every_sampler
def test_the_default_reaches_the_moments_of_the_data(path, prediction, sampler_class):
    assert_the_moments_of_the_data(
        sampler_class(num_evaluations=200, last_step_size=0.005), path(prediction=prediction)
    )


@every_form
@every_last_step
@every_sampler
def test_every_form_and_last_step_reaches_the_moments_of_the_data(form, last_step, sampler_class):
    settings = {"diffusion_form": form, "last_step": last_step, "last_step_size": 0.005}
    assert_the_moments_of_the_data(sampler_class(num_evaluations=200, **settings), FlowMatching())


@every_form
@every_sampler
def test_every_form_reaches_the_moments_of_the_data_where_groups_have_their_own_times(form, sampler_class):
    sampler = sampler_class(num_evaluations=200, diffusion_form=form, last_step_size=0.005)
    assert_the_moments_of_the_data(sampler, shifted(GVP()))


@every_sampler
@every_form
def test_the_bias_falls_with_the_number_of_evaluations(sampler_class, form):
    def error(num_evaluations):
        sampler = sampler_class(
            num_evaluations=num_evaluations, diffusion_form=form, last_step_size=1e-6, last_step="tweedie"
        )
        return (moments(sampler, FlowMatching())[1] / STD**2 - 1).abs().max()

    # Weakly first order: half the error for twice the evaluations, at least near it.
    assert error(200) < 0.65 * error(100)


def test_the_forms_are_as_written_out():
    process, t, n = FlowMatching(), 0.3, 1.7
    expected = {
        "constant": n,
        "sigma": n * 0.7,
        "linear": n * 0.7,
        # On the linear path alpha'/alpha sigma^2 - sigma sigma' = (1 - t)^2 / t + (1 - t) = (1 - t) / t.
        "sbdm": n * 0.7 / 0.3,
        "decreasing": 0.25 * (n * math.cos(0.3 * math.pi) + 1) ** 2,
        "increasing-decreasing": n * math.sin(0.3 * math.pi) ** 2,
    }
    for form, value in expected.items():
        sampler = EulerMaruyama(diffusion_form=form, diffusion_norm=n)
        assert sampler.diffusion(process, t) == pytest.approx(value, rel=1e-12)


def test_sbdm_on_the_vp_path_is_half_of_its_beta():
    # dx = -beta/2 x dt + sqrt(beta) dW (Song et al., arXiv 2011.13456, Eq. 11) reversed has 2 D = beta.
    process = VP(beta_min=0.3, beta_max=15.0)
    for t in (0.0, 0.2, 0.9):
        beta = 0.3 + (1 - t) * (15.0 - 0.3)
        assert EulerMaruyama(diffusion_form="sbdm").diffusion(process, t) == pytest.approx(beta / 2, rel=1e-9)


def test_sbdm_of_a_shifted_path_follows_the_chain_rule():
    # The group's path as one of its own: s(t), with derivatives by central differences.
    process, t, h = shifted(GVP()), 0.4, 1e-6
    got = EulerMaruyama(diffusion_form="sbdm").diffusion(process, t).flatten().tolist()
    for shift, value in zip((1.0, 0.5), got, strict=True):

        def s(t, shift=shift):
            return t / (t + shift * (1 - t))

        d_alpha = (GVP().alpha(s(t + h)) - GVP().alpha(s(t - h))) / (2 * h)
        d_sigma = (GVP().sigma(s(t + h)) - GVP().sigma(s(t - h))) / (2 * h)
        alpha, sigma = GVP().alpha(s(t)), GVP().sigma(s(t))
        assert value == pytest.approx(d_alpha / alpha * sigma**2 - sigma * d_sigma, rel=1e-5)


def test_sbdm_of_a_process_without_derivatives_is_refused():
    class Bare:
        num_timesteps = None

    with pytest.raises(ValueError, match="EulerMaruyama.diffusion_form = 'sbdm' needs the derivatives"):
        EulerMaruyama(diffusion_form="sbdm").check(Bare())


@pytest.mark.parametrize("num_evaluations", [10, 250])
@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0])
def test_euler_maruyama_equals_the_equation_written_out(num_evaluations, norm):
    # Score from velocity, drift v + D score with D = norm sigma, mean-only last step of 0.04.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(num_evaluations, 50, 1, 1, 1, generator=generator, dtype=torch.float64)
    process, replay = FlowMatching(), iter(drawn)
    sampler = EulerMaruyama(num_evaluations=num_evaluations, diffusion_norm=norm)
    x = sampler(exact_field(process), process, lambda: next(replay))
    last = 0.04
    times = torch.linspace(0, 1 - last, num_evaluations, dtype=torch.float64)
    dt = times[1] - times[0]
    expected = drawn[0]
    for k, t in enumerate(times):
        variance = t**2 * STD**2 + (1 - t) ** 2
        velocity = MEAN + (t * STD**2 - (1 - t)) / variance * (expected - t * MEAN)
        score = (t * velocity - expected) / (1 - t)
        drift = velocity + norm * (1 - t) * score
        final = k == num_evaluations - 1
        noise = 0 if final else (2 * norm * (1 - t) * dt).sqrt() * drawn[k + 1]
        expected = expected + (last if final else dt) * drift + noise
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)  # the last t differs by rounding


@pytest.mark.parametrize("num_evaluations", [5, 6])
def test_stochastic_heun_equals_the_algorithm_written_out(num_evaluations):
    # Noise, predictor, corrector; of 4 or 5 evaluations before the last one, the odd one is Euler-Maruyama.
    process = FlowMatching()
    field = exact_field(process)
    drawn = torch.randn(4, 20, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    replay = iter(drawn)
    x = StochasticHeun(num_evaluations=num_evaluations, last_step_size=0.4)(field, process, lambda: next(replay))

    def drift(x, t):
        velocity = field(x, t)
        return velocity + (1 - t) * (t * velocity - x) / (1 - t)

    num_steps = 2 if num_evaluations == 5 else 3
    dt = 0.6 / num_steps
    expected = drawn[0]
    for step in range(num_steps):
        t = step * dt
        kick = math.sqrt(2 * (1 - t) * dt) * drawn[step + 1]
        if step == 0 and num_evaluations == 6:
            expected = expected + dt * drift(expected, t) + kick
            continue
        start = expected + kick
        slope = drift(start, t)
        expected = start + dt / 2 * (slope + drift(start + dt * slope, t + dt))
    expected = expected + 0.4 * drift(expected, 0.6)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("last_step", "expected"),
    [("mean", lambda x, v, noise, clean: x + 0.5 * (v - noise)), ("euler", lambda x, v, noise, clean: x + 0.5 * v),
     ("tweedie", lambda x, v, noise, clean: clean)],
)  # fmt: skip
def test_the_last_step_is_the_one_that_is_asked_for(last_step, expected):
    process, states = FlowMatching(), []

    def denoise(x, t):
        states.append(x)
        return exact_field(process)(x, t)

    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(9, 1, 1, 1, generator=generator, dtype=torch.float64)  # noqa: E731
    x = EulerMaruyama(num_evaluations=2, last_step=last_step, last_step_size=0.5)(denoise, process, draw)
    last, t = states[-1], 0.5
    velocity = exact_field(process)(last, t)
    noise, clean = last - t * velocity, last + (1 - t) * velocity
    torch.testing.assert_close(x, expected(last, velocity, noise, clean), rtol=1e-12, atol=1e-12)
