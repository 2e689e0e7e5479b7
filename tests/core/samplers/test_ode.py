"""The ODE samplers: against SciPy's and written-out solvers, and the exact flow of Gaussian data."""

import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.core.samplers.euler import Euler
from redi.core.samplers.heun import Heun
from redi.core.samplers.ode import EVALUATIONS_PER_STEP, AdaptiveODE, FixedODE, equal_times, integrate

MEAN, STD = 0.7, 0.5
PATHS = {
    f"{path.__name__} {prediction}": path(prediction=prediction)
    for path in (FlowMatching, GVP, VP)
    for prediction in ("velocity", "noise", "score", "data")
} | {"Shifted": Shifted(process=GVP(), shift={"z": 0.5}).for_channels(Channels(image=1, z=1))}
every_method = pytest.mark.parametrize("method", EVALUATIONS_PER_STEP)
every_process = pytest.mark.parametrize("process", PATHS.values(), ids=PATHS)


def exact_field(process, times=None):
    """The expected prediction for data N(MEAN, STD^2), which records the times of its calls."""

    def denoise(x, t):
        if times is not None:
            times.append(t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        deviation = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return process.target(MEAN + alpha * STD**2 * deviation, sigma * deviation, t)

    return denoise


def normal(num=50, dtype=torch.float64, seed=0):
    return torch.randn(num, 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow(process, x):
    """The exact solution of the ODE from the first to the last t: the standardized state is constant."""

    def moments(t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * MEAN, (alpha**2 * STD**2 + sigma**2) ** 0.5

    (mean0, std0), (mean1, std1) = (moments(t) for t in process.t_range())
    return mean1 + std1 / std0 * (x - mean0)


@every_process
@pytest.mark.parametrize("sampler", [Heun(num_evaluations=400), FixedODE(num_evaluations=400, method="rk4")])
def test_fixed_steps_follow_the_exact_flow_on_every_path(process, sampler):
    x = sampler(exact_field(process), process, normal)
    # VP's sigma' is like (1 - t)^-1/2 at its end: there the order is lost.
    tolerance = 5e-3 if isinstance(process, VP) else 1e-3
    torch.testing.assert_close(x, flow(process, normal()), rtol=0, atol=tolerance)


@every_process
def test_adaptive_steps_follow_the_exact_flow_on_every_path_within_the_interval(process):
    times = []
    x = AdaptiveODE(rtol=1e-7, atol=1e-7)(exact_field(process, times), process, normal)
    torch.testing.assert_close(x, flow(process, normal()), rtol=0, atol=1e-5)
    first, last = process.t_range()
    assert first <= min(times) and max(times) <= last


@every_process
@pytest.mark.parametrize("sampler", [Euler(num_evaluations=4), Heun(num_evaluations=4), FixedODE(num_evaluations=4)])
def test_fixed_steps_stay_within_the_interval(process, sampler):
    times = []
    sampler(exact_field(process, times), process, normal)
    first, last = process.t_range()
    assert len(times) == 4
    assert first <= min(times) and max(times) <= last


@every_method
def test_the_error_of_a_method_falls_with_its_order(method):
    order = EVALUATIONS_PER_STEP[method]  # 1, 2, 3, 4: the same number for these methods

    def run(method, num_steps):
        def slope(state, t):
            return (torch.sin(3 * state[0]) + 4 * t * torch.cos(state[0]),)

        return integrate(slope, (normal(),), equal_times(0.0, 1.0, num_steps), method=method)[0]

    exact = run("rk4", 2000)
    errors = [(run(method, num_steps) - exact).abs().max() for num_steps in (100, 200)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@every_method
def test_a_method_makes_exactly_the_evaluations_it_is_told(method):
    times = []
    FixedODE(num_evaluations=12, method=method)(exact_field(FlowMatching(), times), FlowMatching(), normal)
    assert len(times) == 12


def test_the_euler_of_torchdiffeq_is_ours():
    x = [
        s(exact_field(GVP()), GVP(), normal)
        for s in (FixedODE(num_evaluations=9, method="euler"), Euler(num_evaluations=9))
    ]
    torch.testing.assert_close(*x, rtol=1e-12, atol=1e-12)


def test_evaluations_that_are_no_whole_steps_are_refused():
    with pytest.raises(ValueError, match="FixedODE.num_evaluations = 250: must be a multiple of 4, the"):
        FixedODE(num_evaluations=250, method="rk4")


@pytest.mark.parametrize("sampler_class", [FixedODE, AdaptiveODE])
def test_an_unknown_method_is_refused(sampler_class):
    with pytest.raises(ValueError, match=f"{sampler_class.__name__}.method = 'magic'"):
        sampler_class(method="magic")


@pytest.mark.parametrize("setting", ["rtol", "atol"])
def test_a_tolerance_of_zero_is_refused(setting):
    with pytest.raises(ValueError, match=f"AdaptiveODE.{setting} = 0"):
        AdaptiveODE(**{setting: 0})


@pytest.mark.parametrize(("method", "scipy_method"), [("dopri5", "RK45"), ("bosh3", "RK23")])
def test_adaptive_steps_agree_with_scipy_on_a_curved_field(method, scipy_method):
    from scipy.integrate import solve_ivp

    def velocity(x, t):
        return torch.sin(3 * x) + 4 * t * torch.cos(x)

    x = normal(5)
    exact = solve_ivp(
        lambda t, y: velocity(torch.from_numpy(y), t).numpy(), (0, 1), x.flatten().numpy(), method="DOP853", rtol=1e-11,
        atol=1e-11,
    ).y[:, -1]  # fmt: skip
    theirs = solve_ivp(
        lambda t, y: velocity(torch.from_numpy(y), t).numpy(), (0, 1), x.flatten().numpy(), method=scipy_method,
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    times = []
    sampler = AdaptiveODE(method=method, rtol=1e-5, atol=1e-5)
    ours = sampler(lambda x, t: times.append(t) or velocity(x, t), FlowMatching(), lambda: x)
    error, their_error = (abs(values - exact).max() for values in (ours.flatten().numpy(), theirs.y[:, -1]))
    assert error < max(3 * their_error, 1e-4)
    assert len(times) < 2 * theirs.nfev  # the largest error of an image decides; SciPy uses the mean square


def test_fewer_evaluations_are_made_for_a_larger_tolerance():
    def evaluations(rtol):
        times = []
        AdaptiveODE(rtol=rtol)(exact_field(GVP(), times), GVP(), normal)
        return len(times)

    assert evaluations(1e-2) < evaluations(1e-4) < evaluations(1e-6) < 500


def test_an_image_depends_on_its_neighbours_within_the_tolerance_only():
    # In float32, as in sampling. The neighbours are 50 times as far out.
    x = normal(4, torch.float32)
    sampler = AdaptiveODE(rtol=1e-4, atol=1e-4)
    alone = sampler(exact_field(GVP()), GVP(), lambda: x)
    together = sampler(exact_field(GVP()), GVP(), lambda: torch.cat([x, 50 * x]))[:4]
    assert alone.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-3)


def test_every_image_keeps_the_tolerance_in_a_large_batch_of_easy_ones():
    # One image moves and 500 do not: a mean over the batch would hide its error.
    def denoise(x, t):
        return torch.cat([12 * torch.cos(12 * x.new_tensor(t)) * torch.ones_like(x[:1]), torch.zeros_like(x[1:])])

    x = AdaptiveODE(rtol=1e-6, atol=1e-6)(denoise, FlowMatching(), lambda: torch.zeros(501, 1, 1, 1).double())
    assert x[0].item() == pytest.approx(math.sin(12), abs=1e-5)


def test_the_probe_for_the_first_step_stays_within_the_interval():
    # A field much slower than its state makes torchdiffeq probe far ahead.
    times = []
    AdaptiveODE()(lambda x, t: times.append(t) or 1e-3 * x, FlowMatching(), normal)
    assert max(times) <= 1


def test_integration_backwards_returns_to_the_start():
    def slope(state, t):
        return (torch.sin(state[0]) + t,)

    there = integrate(slope, (normal(),), (0.1, 0.9), method="dopri5", rtol=1e-9, atol=1e-9)
    back = integrate(slope, there, (0.9, 0.1), method="dopri5", rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back[0], normal(), rtol=1e-6, atol=1e-6)
    there = integrate(slope, (normal(),), equal_times(0.1, 0.9, 50), method="rk4")
    back = integrate(slope, there, equal_times(0.9, 0.1, 50), method="rk4")
    torch.testing.assert_close(back[0], normal(), rtol=1e-6, atol=1e-6)


def test_a_prediction_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="dopri5 failed .* not finite"):
        AdaptiveODE()(lambda x, t: x / 0 if t > 0.5 else x, FlowMatching(), normal)
