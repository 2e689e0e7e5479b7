"""Conditional sampling from a Gaussian joint distribution, whose conditional is known."""

import pytest
import torch

from redi.core.channels import Channels, Vector
from redi.core.clocks import Lead, Shift
from redi.core.processes.clocked import Clocked
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers import samplers
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.sampling.conditional import check_given, clamped, times_with_given

CHANNELS = Channels(image=1, z=1)
CORRELATION = 0.8


def exact_velocity(x, t):
    """Of (image, z) with unit variances and a correlation: E[x - noise | x_t] is linear in x_t."""
    covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=x.dtype)
    at_t = t**2 * covariance + (1 - t) ** 2 * torch.eye(2, dtype=x.dtype)
    gain = (t * covariance - (1 - t) * torch.eye(2, dtype=x.dtype)) @ torch.linalg.inv(at_t)
    return torch.einsum("ij,njhw->nihw", gain, x)


def noise(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(n, 2, 1, 1, generator=generator, dtype=torch.float64)


def query(sampler, given, n=20_000):
    denoise, draw, finish = clamped(exact_velocity, FlowMatching(), noise(n), CHANNELS, given)
    return finish(sampler(denoise, FlowMatching(), draw))


def test_the_given_group_comes_back_exactly():
    z = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None, None, None]
    assert torch.equal(query(Euler(num_evaluations=20), {"z": z}, n=50)[:, 1:], z)


def test_a_sampler_that_mixes_at_every_t_draws_from_the_conditional():
    # N(0.8 z, 0.36); the standard error of the mean is 0.01, the rest is due to finite mixing.
    z = torch.full((4000, 1, 1, 1), 1.5, dtype=torch.float64)
    drawn = query(EulerMaruyama(diffusion_norm=30.0, last_step_size=0.01), {"z": z}, n=4000)[:, 0]
    assert drawn.mean() == pytest.approx(CORRELATION * 1.5, abs=0.08)
    assert drawn.var() == pytest.approx(1 - CORRELATION**2, abs=0.06)


def test_an_ode_sampler_follows_the_given_group_only_weakly():
    z = torch.full((20_000, 1, 1, 1), 1.5, dtype=torch.float64)
    assert 0.2 * 1.5 < query(Euler(num_evaluations=100), {"z": z})[:, 0].mean() < 0.6 * 1.5


def test_a_network_that_is_told_the_groups_times_gives_the_conditional_itself():
    z = torch.linspace(-2, 2, 20_000, dtype=torch.float64)[:, None, None, None]

    def given_clean(x, t):  # of the image, N(0.8 z, 0.36) at t: the velocity of its path
        mean, variance = CORRELATION * x[:, 1:], 1 - CORRELATION**2
        at_t = t**2 * variance + (1 - t) ** 2
        return torch.cat([mean + (t * variance - (1 - t)) / at_t * (x[:, :1] - t * mean), x[:, 1:]], dim=1)

    denoise, draw, finish = clamped(given_clean, FlowMatching(), noise(20_000), CHANNELS, {"z": z}, own_time=True)
    image = finish(Euler(num_evaluations=200)(denoise, FlowMatching(), draw))[:, :1] - CORRELATION * z
    assert abs(image.mean()) < 4 * 0.6 / 20_000**0.5
    assert image.var() == pytest.approx(0.36, abs=0.02)


def test_the_network_is_told_that_given_groups_are_clean():
    told = times_with_given(FlowMatching(), CHANNELS, ["z"])(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(told, torch.tensor([[0.2, 1.0], [0.7, 1.0]]))
    assert times_with_given(DDPM(), CHANNELS, ["z"])(torch.tensor([0.0])).tolist() == [[999.0, 0.0]]


def test_an_independent_group_is_not_moved():
    z = torch.full((20_000, 1, 1, 1), 1.5, dtype=torch.float64)
    denoise, draw, finish = clamped(
        lambda x, t: (t - (1 - t)) / (t**2 + (1 - t) ** 2) * x, FlowMatching(), noise(20_000), CHANNELS, {"z": z}
    )
    drawn = finish(Euler(num_evaluations=100)(denoise, FlowMatching(), draw))[:, 0]
    assert abs(drawn.mean()) < 4 / 20_000**0.5
    assert abs(drawn.var() - 1) < 0.03


def test_the_network_sees_the_given_group_on_its_path_with_the_first_noise():
    z, seen = torch.full((3, 1, 1, 1), 2.0, dtype=torch.float64), []

    def record(x, t):
        seen.append((t, x[:, 1:].clone()))
        return torch.zeros_like(x)

    denoise, draw, _ = clamped(record, FlowMatching(), noise(3), CHANNELS, {"z": z})
    Euler(num_evaluations=4)(denoise, FlowMatching(), draw)
    first = noise(3)()[:, 1:]
    for t, group in seen:
        torch.testing.assert_close(group, t * z + (1 - t) * first)


@pytest.mark.parametrize("clock", [Lead(0.3), Lead(-0.5), Shift(shift={"z": 0.4})])
def test_with_a_clock_the_given_group_is_on_its_path_at_its_own_time(clock):
    z, seen = torch.full((3, 1, 1, 1), 2.0, dtype=torch.float64), []
    process = Clocked(FlowMatching(), clock).for_channels(CHANNELS)

    def record(x, s):
        seen.append((s, x[:, 1:].clone()))
        return torch.zeros_like(x)

    denoise, draw, insert = clamped(record, process, noise(3), CHANNELS, {"z": z})
    x = Euler(num_evaluations=5)(denoise, process, draw)
    first, bound = noise(3)()[:, 1:], clock.for_channels(CHANNELS)
    assert len(seen) == 5
    for s, group in seen:
        t = bound.time("z", s)
        torch.testing.assert_close(group, t * z + (1 - t) * first, rtol=1e-6, atol=1e-6)
    assert torch.equal(insert(x)[:, 1:], z)


def exact_prediction(process):
    """E[x - noise | x_s] for the Gaussian of `exact_velocity`, if each group has its own time."""

    def denoise(x, s):
        t = torch.diag(torch.tensor(list(process.group_times(CHANNELS, s).values()), dtype=x.dtype))
        identity = torch.eye(2, dtype=x.dtype)
        covariance = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=x.dtype)
        at_s = t @ covariance @ t + (identity - t) ** 2
        return torch.einsum("ij,njhw->nihw", (covariance @ t - (identity - t)) @ torch.linalg.inv(at_s), x)

    return denoise


@pytest.mark.parametrize(("offset", "given"), [(1.0, "z"), (-1.0, "image")])
def test_a_given_group_that_leads_by_1_gives_the_conditional_with_an_ode(offset, given):
    """The given group is clean before the other one starts, so the replacement conditions on the clean group."""
    process = Clocked(FlowMatching(), Lead(offset)).for_channels(CHANNELS)
    known = torch.linspace(-2, 2, 20_000, dtype=torch.float64)[:, None, None, None]
    denoise, draw, insert = clamped(exact_prediction(process), process, noise(20_000), CHANNELS, {given: known})
    groups = CHANNELS.split(insert(Euler(num_evaluations=400)(denoise, process, draw)))
    rest = groups["image" if given == "z" else "z"] - CORRELATION * known  # N(0, 0.36)
    assert abs(rest.mean()) < 4 * 0.6 / 20_000**0.5
    assert rest.var() == pytest.approx(0.36, abs=0.02)


@pytest.mark.parametrize("name", [name for name in samplers if name in ("Euler", "Heun", "EulerMaruyama")])
def test_it_costs_no_evaluation(name):
    calls = []

    def count(x, t):
        calls.append(t)
        return torch.zeros_like(x)

    denoise, draw, _ = clamped(count, FlowMatching(), noise(2), CHANNELS, {"z": torch.zeros(2, 1, 1, 1)})
    samplers[name](num_evaluations=6)(denoise, FlowMatching(), draw)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": torch.zeros(2, 1, 4, 4)}, "'clip'.*image, z"),
        ({"z": torch.zeros(2, 3, 4, 4)}, "shape.*must be"),
        ({"z": torch.zeros(2, 1, 4, 4), "image": torch.zeros(2, 1, 4, 4)}, "leave out at least one"),
    ],
)
def test_what_cannot_be_given_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_given(given, CHANNELS, (2, 4, 4))


def test_a_vector_may_be_given_without_its_channels():
    channels = Channels(image=1, token=Vector(5, channels=2))
    numbers = torch.randn(2, 5)
    stored = channels.stored("token", numbers, (2, 2))
    padded = stored + (stored == 0)
    for given in (numbers, numbers[:, :, None, None], stored, padded):
        assert torch.equal(check_given({"token": given}, channels, (2, 2, 2))["token"], stored)
    shapes = r"has shape \(2, 6\): must be \(2, 5\) or \(2, 5, 1, 1\) or \(2, 2, 2, 2\)"
    with pytest.raises(ValueError, match=shapes):
        check_given({"token": torch.zeros(2, 6)}, channels, (2, 2, 2))
    with pytest.raises(ValueError, match="must be floating-point"):
        check_given({"token": torch.zeros(2, 5, dtype=torch.long)}, channels, (2, 2, 2))
