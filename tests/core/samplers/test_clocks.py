"""Samplers under clocks, on correlated Gaussian groups: exact joint moments, frozen groups, and SFD's own formulas."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from redi.core.channels import Channels
from redi.core.clocks.lead import Lead
from redi.core.clocks.shift import Shift
from redi.core.likelihood import log_likelihood
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.vp import VP
from redi.core.samplers import samplers
from redi.core.samplers.ddim import DDIM
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.heun import Heun
from redi.core.samplers.ode import AdaptiveODE, FixedODE
from redi.core.samplers.sde import DIFFUSION_FORMS, LAST_STEPS
from redi.core.samplers.stochastic_heun import StochasticHeun
from tests.core.samplers.joint_gaussian import FACTOR, MEAN, exact_field, marginal, trajectory_moments

OFFSETS = [0.0, 0.3, 1.0, -0.3, {"z": 0.3, "w": -0.2}]
every_offset = pytest.mark.parametrize("offset", OFFSETS, ids=str)
CONTINUOUS = ["Euler", "Heun", "FixedODE", "EulerMaruyama", "StochasticHeun", "DDIM"]
every_sampler = pytest.mark.parametrize("name", CONTINUOUS)


@pytest.fixture(autouse=True)
def float64():
    """The coefficients of clocked processes have torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def leading(offset, path=None):
    groups = {"image": 1, "z": 1} | ({"w": 1} if isinstance(offset, dict) else {})
    channels = Channels(**groups)
    return Clocked(FlowMatching() if path is None else path, Lead(offset)).for_channels(channels), channels.total


def errors(sampler, process, size, num_draws=1):
    """The largest error of any moment of the states of a sampler, against the process."""
    states = trajectory_moments(sampler, process, size, num_draws)
    exact = [marginal(process, s, size) for s, _, _ in states]
    return max(
        max((mean - m).abs().max().item(), (covariance - c).abs().max().item())
        for (_, mean, covariance), (m, c) in zip(states, exact, strict=True)
    )


@every_offset
@pytest.mark.parametrize(
    ("sampler", "order", "bound"),
    [
        (lambda n: Euler(n), 1, 0.1), (lambda n: Heun(n), 2, 5e-3), (lambda n: FixedODE(n), 2, 5e-4),
        (lambda n: FixedODE(n, method="rk4"), 4, 1e-4), (lambda n: Euler(n, shift=2.0), 1, 0.2),
        (lambda n: DDIM(n), 1, 0.1),
    ],
    ids=["euler", "heun", "midpoint", "rk4", "shifted euler", "ddim"],
)  # fmt: skip
def test_every_state_of_the_ode_has_the_joint_moments_to_the_order_of_the_method(offset, sampler, order, bound):
    # Without a step that ends at each kink, rk4 has an error of 0.01 to 0.05 here and loses its order.
    process, size = leading(offset)
    first, second = (errors(sampler(n), process, size) for n in (40, 80))
    assert first < bound and second < first / 2 ** (order - 0.5)


@every_offset
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_adaptive_steps_reach_the_joint_moments_within_their_tolerance(offset, prediction):
    # A step across a kink costs an error of up to 2e-5 here.
    process, size = leading(offset, GVP(prediction=prediction))
    error = errors(AdaptiveODE(rtol=1e-8, atol=1e-8), process, size)
    assert error < (5e-8 if prediction == "velocity" else 5e-3)  # at a pole, the time is off by the margin of 1e-3


@every_offset
@pytest.mark.parametrize("sampler_class", [EulerMaruyama, StochasticHeun])
@pytest.mark.parametrize("last_step", ["mean", "tweedie", None])
def test_every_state_of_the_sde_has_the_joint_moments_to_first_order(offset, sampler_class, last_step):
    process, size = leading(offset)

    def error(n):
        sampler = sampler_class(num_evaluations=n, last_step=last_step, last_step_size=1 / n)
        return errors(sampler, process, size, num_draws=n + 1)

    first, second = error(24), error(48)
    assert first < 0.08 and second < first / 1.5


@pytest.mark.parametrize("form", DIFFUSION_FORMS)
@pytest.mark.parametrize("path", [FlowMatching(), FlowMatching(prediction="data"), GVP(prediction="noise"), VP()])
def test_every_diffusion_is_finite_and_a_group_that_stands_still_does_not_change(form, path):
    for last_step in LAST_STEPS:
        for sampler_class, num_evaluations in ((EulerMaruyama, 6), (StochasticHeun, 11)):
            sampler = sampler_class(num_evaluations=num_evaluations, diffusion_form=form, last_step=last_step)
            assert_frozen_groups_do_not_change(sampler, *leading({"z": 0.3, "w": -0.2}, path))


@pytest.mark.parametrize("sampler", [Euler(6), Heun(10), FixedODE(10), DDIM(6), DDIM(6, eta=0.5)])
@pytest.mark.parametrize("path", [FlowMatching(), FlowMatching(prediction="data"), GVP(prediction="noise"), VP()])
def test_a_group_that_stands_still_does_not_change_under_the_ode(path, sampler):
    assert_frozen_groups_do_not_change(sampler, *leading({"z": 0.3, "w": -0.2}, path))


def assert_frozen_groups_do_not_change(sampler, process, size):
    groups, generator = ("image", "z", "w")[:size], torch.Generator().manual_seed(0)
    states: list = []
    num_frozen, draw = 0, lambda: torch.randn(3, size, 1, 1, generator=generator)
    sampler(exact_field(process, size), process, draw, trajectory=states)
    for (s, x), (s_next, x_next) in pairwise(states):
        assert x_next.isfinite().all(), sampler.provenance()
        for i, group in enumerate(groups):
            if process.clock.time(group, s_next) - process.clock.time(group, s) < 1e-12:
                num_frozen += 1
                assert torch.equal(x[:, i], x_next[:, i]), (sampler.provenance(), group, s)
    assert num_frozen or isinstance(sampler, DDIM)  # whose steps need not end at kinks


@every_sampler
@every_offset
def test_the_network_is_called_num_evaluations_times_whatever_the_clock_and_grid(name, offset):
    process, size = leading(offset)
    grids = [{}] if name == "DDIM" else [{}, {"shift": 3.0}, {"times": [0, 0.1, 0.2, 0.4, 0.5, 0.75, 0.8, 1]}]
    for grid in grids:
        calls: list[float] = []
        sampler = samplers[name](**grid) if "times" in grid else samplers[name](num_evaluations=18, **grid)
        sampler(exact_field(process, size, calls), process, lambda: torch.zeros(1, size, 1, 1))
        assert len(calls) == sampler.num_evaluations


@every_sampler
def test_a_lead_of_zero_gives_the_samples_of_the_plain_path(name):
    settings, paths = [{}], [FlowMatching(), GVP(), FlowMatching(prediction="data")]
    if name in ("EulerMaruyama", "StochasticHeun"):
        settings = [{"diffusion_form": form, "last_step": step} for form in DIFFUSION_FORMS for step in LAST_STEPS]
        paths = paths[:1]
    for path in paths:
        process, size = leading(0.0, path)
        field = exact_field(process, size)
        for setting in settings:
            results = []
            for each in (path, process):
                generator = torch.Generator().manual_seed(0)
                draw = lambda: torch.randn(3, 2, 1, 1, generator=generator)  # noqa: B023, E731
                results.append(samplers[name](num_evaluations=12, **setting)(field, each, draw))
            torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [13, 26, 130])
def test_euler_with_a_lead_is_the_masked_euler_of_sfd(num_steps):
    # tau from 0 to 1.3, velocities of inactive groups masked (arXiv 2512.04926). In exact fractions, because a rounded
    # tau of 0.29999998 would start the image one step late.
    process, size = leading(0.3)
    lead, initial = Fraction(3, 10), torch.tensor([[0.4, -1.1], [1.2, 0.3]])[:, :, None, None]
    field, x = exact_field(process, size), initial
    for k in range(num_steps):
        tau, step = (1 + lead) * k / num_steps, (1 + lead) / num_steps
        active = torch.tensor([float(tau >= lead), float(tau < 1)])[None, :, None, None]
        x = x + float(step) * active * field(x, float(tau / (1 + lead)))
    got = Euler(num_steps)(field, process, lambda: initial)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_times", [11, 14, 27])  # 14 and 27 have 0.29999998 in float32, where the image starts late
def test_euler_without_split_is_the_fixed_step_loop_of_sfd(num_times):
    process, size = leading(0.3)
    taus = torch.linspace(0, 1.3, num_times, dtype=torch.float32)
    initial = torch.tensor([[0.4, -1.1], [1.2, 0.3]])[:, :, None, None]
    field, x = exact_field(process, size), initial
    for tau, tau_next in pairwise(taus):
        active = torch.stack([tau >= 0.3, tau <= 1])[None, :, None, None]  # both ends included
        x = x + (tau_next - tau).double() * active * field(x, float(tau) / 1.3)
    times = [*(float(tau) / 1.3 for tau in taus[:-1]), 1.0]
    got = Euler(times=times, split=False)(field, process, lambda: initial)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)
    assert (got - Euler(times=times)(field, process, lambda: initial)).abs().max() > 1e-3
    assert Euler(split=False).provenance()["split"] is False and "split" not in Euler().provenance()


@pytest.mark.parametrize("offset", OFFSETS[1:3], ids=str)
@pytest.mark.parametrize("settings", [{"rtol": 1e-7, "atol": 1e-7}, {"method": "rk4", "num_steps": 30}])
def test_the_likelihood_under_a_clock_is_that_of_the_joint_gaussian(offset, settings):
    process, size = leading(offset)
    x = torch.randn(4, size, 1, 1, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.MultivariateNormal(MEAN[:size], scale_tril=FACTOR[:size, :size]).log_prob(x[:, :, 0, 0])
    got = log_likelihood(exact_field(process, size), process, x, exact=True, **settings)
    torch.testing.assert_close(got.log_likelihood, exact, rtol=0, atol=1e-3)


def test_smooth_clocks_keep_the_order_of_the_solvers():
    process = Clocked(GVP(), Shift(shift={"z": 0.3})).for_channels(Channels(image=1, z=1))
    for sampler, order in ((lambda n: Heun(n), 2), (lambda n: FixedODE(n, method="rk4"), 4)):
        first, second = (errors(sampler(n), process, 2) for n in (40, 80))
        assert second < first / 2 ** (order - 0.5)


def test_too_few_steps_for_the_clock_are_refused_before_the_first_evaluation():
    process, _ = leading(0.3)
    what = "Euler.num_evaluations = 2 gives 2 steps, but .* at the times 0.2308, 0.7692: must give at least 3 steps"
    with pytest.raises(ValueError, match=what):
        Euler(2).check(process)
    Euler(3).check(process)


def test_offsets_with_a_common_kink_need_one_step_for_it():
    channels = Channels(image=1, a=1, b=1)
    process = Clocked(FlowMatching(), Lead({"a": 0.7, "b": -0.3})).for_channels(channels)
    assert len(process.kinks()) == 3  # the ends of a and of the image's wait coincide with none; rounding adds none
    process = Clocked(FlowMatching(), Lead({"a": 0.5, "b": -0.5})).for_channels(channels)
    assert process.kinks() == (0.25, 0.5, 0.75)
