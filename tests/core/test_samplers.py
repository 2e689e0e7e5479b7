"""Samplers against closed forms: for Gaussian data the velocity field and the flow map are known exactly.

The contracts hold for every registered sampler. tests/core/samplers/ looks at
the families one by one.
"""

import inspect
import itertools
import json
import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.vp import VP
from redi.core.samplers import ImageNoise, Sampler, samplers
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.heun import Heun
from redi.runtime.randomness import mix_seeds

SHAPE = (2, 3, 3)
MEAN, STD = 0.7, 0.5
ADAPTIVE = [name for name in samplers if "num_evaluations" not in inspect.signature(samplers[name]).parameters]
COUNTED = [name for name in samplers if name not in ADAPTIVE]
every_sampler = pytest.mark.parametrize("name", samplers)
every_counted_sampler = pytest.mark.parametrize("name", COUNTED)


def gaussian_velocity(x, t, mean=MEAN, std=STD):
    """E[x - noise | x_t] for data N(mean, std^2): the joint distribution is Gaussian, so it is affine in x_t."""
    variance = t**2 * std**2 + (1 - t) ** 2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


class Recorder:
    """Draws normal numbers in float64 and records them."""

    def __init__(self, shape, seed=0):
        self.generator, self.shape, self.drawn = torch.Generator().manual_seed(seed), shape, []

    def __call__(self):
        self.drawn.append(torch.randn(self.shape, generator=self.generator, dtype=torch.float64))
        return self.drawn[-1]


def made(name, num_evaluations=6) -> Sampler:
    return samplers[name]() if name in ADAPTIVE else samplers[name](num_evaluations=num_evaluations)


def suitable(sampler: Sampler):
    """A process that the sampler supports."""
    try:
        sampler.check(FlowMatching())
        return FlowMatching()
    except ValueError:
        return DDPM(num_timesteps=500, learned_variance=()).for_channels(Channels(image=SHAPE[0]))


def run(name, draw, num_evaluations=6, denoise=gaussian_velocity):
    sampler = made(name, num_evaluations)
    return sampler(denoise, suitable(sampler), draw)


def times_of(sampler):
    """The t at which a sampler evaluates the network."""
    times = []

    def denoise(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sampler(denoise, suitable(sampler), Recorder((1, SHAPE[0], 1, 1)))
    return times


@every_counted_sampler
@pytest.mark.parametrize("num_evaluations", [2, 6, 250])
def test_exactly_num_evaluations_calls_are_made(name, num_evaluations):
    sampler = samplers[name](num_evaluations=num_evaluations)
    assert sampler.num_evaluations == num_evaluations
    assert len(times_of(sampler)) == num_evaluations


@every_sampler
def test_the_result_has_the_shape_and_type_of_the_noise(name):
    x = run(name, ImageNoise(0, range(3), SHAPE))
    assert x.shape == (3, *SHAPE)
    assert x.dtype == torch.float32


@every_sampler
def test_a_seed_decides_the_result(name):
    def drawn(seed):
        return run(name, ImageNoise(seed, range(3), SHAPE))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@every_sampler
def test_recorded_noise_gives_the_same_result_again(name):
    record = Recorder((2, *SHAPE))
    first = run(name, record)
    replay = iter(record.drawn)
    assert torch.equal(first, run(name, lambda: next(replay)))


@every_sampler
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.6), (0.4, 1.0), (0.2, 0.8)])
def test_the_trajectory_holds_the_state_at_the_start_and_after_every_step(name, start, end):
    record, asked, trajectory, sampler = Recorder((2, *SHAPE)), [], [], made(name)

    def denoise(x, t):
        asked.append(t)
        return gaussian_velocity(x, t)

    x = sampler(denoise, suitable(sampler), record, start=start, end=end, trajectory=trajectory)
    times = [t for t, _ in trajectory]
    assert times == sorted(set(times)) and len(asked) >= len(times) - 1
    assert times[0] == pytest.approx(start, abs=2e-3) and times[-1] == pytest.approx(end, abs=2e-3)
    assert torch.equal(trajectory[0][1], record.drawn[0]) and torch.equal(trajectory[-1][1], x)
    assert all(min(abs(t - one) for one in asked) < 1e-9 for t in times[:-1])
    assert start - 1e-9 < min(asked) and max(asked) <= end
    if name in COUNTED:
        assert len(asked) == 6


@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        (lambda n: Euler(num_evaluations=n), FlowMatching()),
        (lambda n: Heun(num_evaluations=n), FlowMatching()),
        (lambda n: samplers["FixedODE"](num_evaluations=n), FlowMatching()),
        (lambda n: samplers["DDIM"](num_evaluations=n, eta=0.5), FlowMatching()),
        (lambda n: EulerMaruyama(num_evaluations=n, last_step=None), FlowMatching()),
        (lambda n: samplers["DDIM"](num_evaluations=n, eta=0.5), DDPM(num_timesteps=16, learned_variance=())),
        (lambda n: samplers["Ancestral"](num_evaluations=n), DDPM(num_timesteps=16, learned_variance=())),
    ],
)
def test_two_halves_of_a_path_are_the_whole(sampler, process):
    record = Recorder((2, *SHAPE))
    whole = sampler(16)(gaussian_velocity, process, record)
    noise = iter(record.drawn)
    half = sampler(8)(gaussian_velocity, process, noise.__next__, end=0.5)
    x = sampler(8)(gaussian_velocity, process, itertools.chain([half], noise).__next__, start=0.5)
    torch.testing.assert_close(x, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "evaluations", "steps"),
    [
        ("EulerMaruyama", {}, 8, 8),
        ("StochasticHeun", {}, 2 * 8 - 1, 8),
        ("Euler", {}, 8 - 1, 7),
        ("Heun", {}, 2 * (8 - 1), 7),
        ("FixedODE", {"method": "rk4"}, 4 * (8 - 1), 7),
        ("Ancestral", {}, 8, 8),
        ("DDIM", {"respacing": "ddim10"}, 10, 10),
    ],
)
def test_published_steps_are_the_evaluations_of_the_table_in_the_docs(name, settings, evaluations, steps):
    sampler = samplers[name](num_evaluations=evaluations, **settings)
    trajectory, process = [], suitable(sampler) if name != "DDIM" else DDPM(num_timesteps=500, learned_variance=())
    sampler(gaussian_velocity, process, Recorder((1, *SHAPE)), trajectory=trajectory)
    times = [t for t, _ in trajectory]
    assert len(times) == steps + 1
    if name in ("EulerMaruyama", "StochasticHeun"):
        assert times == pytest.approx([*torch.linspace(0, 0.96, 8, dtype=torch.float64).tolist(), 1])


@pytest.mark.parametrize("name", ["EulerMaruyama", "StochasticHeun"])
def test_a_late_start_takes_equal_steps_and_a_last_one_onto_the_data(name):
    trajectory, record = [], Recorder((1, *SHAPE))
    samplers[name](num_evaluations=5)(gaussian_velocity, FlowMatching(), record, start=0.98, trajectory=trajectory)
    steps = [b[0] - a[0] for a, b in itertools.pairwise(trajectory)]
    assert steps == pytest.approx([0.02 / len(steps)] * len(steps))


@every_sampler
@pytest.mark.parametrize(("start", "end"), [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.8, 0.2), (math.nan, 1.0)])
def test_a_part_that_is_not_between_noise_and_data_is_refused(name, start, end):
    sampler = made(name)
    with pytest.raises(ValueError, match=r"must satisfy 0 <= start < end <= 1"):
        sampler(lambda x, t: pytest.fail("asked"), suitable(sampler), Recorder((1, *SHAPE)), start=start, end=end)


@pytest.mark.parametrize("name", sorted(set(samplers) - {"Ancestral"}))
def test_a_part_in_which_the_process_cannot_be_evaluated_is_refused(name):
    with pytest.raises(ValueError, match=r"must overlap \[0, 0.999\], the t_range of VP"):
        made(name)(lambda x, t: pytest.fail("asked"), VP(), Recorder((1, *SHAPE)), start=0.9995)


@pytest.mark.parametrize("name", ["Ancestral", "DDIM"])
def test_more_evaluations_than_the_part_has_timesteps_are_refused(name):
    process = DDPM(num_timesteps=100, learned_variance=()).for_channels(Channels(image=SHAPE[0]))
    with pytest.raises(ValueError, match="num_evaluations = 30, but there are 20 timesteps from start = 0.8"):
        made(name, 30)(lambda x, t: pytest.fail("asked"), process, Recorder((1, *SHAPE)), start=0.8)


@every_sampler
def test_all_times_lie_between_noise_and_data(name):
    times = times_of(made(name, 10))
    assert 0 <= times[0] <= 1e-3
    assert max(times) <= 1
    assert times == sorted(times) or name in ADAPTIVE  # which may reject a step


@every_sampler
def test_a_sampler_s_provenance_is_json(name):
    assert json.loads(json.dumps(made(name).provenance()))["name"] == name


@every_sampler
def test_a_process_of_the_wrong_kind_is_refused_before_the_first_evaluation(name):
    sampler = made(name)
    for process in (FlowMatching(), DDPM(num_timesteps=100).for_channels(Channels(image=2))):
        try:
            sampler.check(process)
        except ValueError as refused:
            assert name in str(refused)
            assert "samplers." in str(refused)
            with pytest.raises(ValueError, match=f"{name}"):
                sampler(lambda x, t: pytest.fail("the network was asked"), process, Recorder((1, *SHAPE)))


def test_which_samplers_follow_which_processes():
    def suits(name, process):
        try:
            made(name).check(process)
        except ValueError:
            return False
        return True

    assert {name for name in samplers if suits(name, DDPM())} == {"Ancestral", "DDIM"}
    assert {name for name in samplers if not suits(name, FlowMatching())} == {"Ancestral"}


@every_counted_sampler
def test_no_evaluations_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.num_evaluations = 0"):
        samplers[name](num_evaluations=0)


def test_an_odd_number_of_evaluations_is_refused_by_heun():
    with pytest.raises(ValueError, match="Heun.num_evaluations = .*: must be a multiple of 2"):
        Heun(num_evaluations=7)


@pytest.mark.parametrize("num_evaluations", [1, 2, 7])
def test_euler_lands_on_a_point_mass_in_any_number_of_steps(num_evaluations):
    # The paths to a point are straight lines, which Euler follows without error.
    x = Euler(num_evaluations=num_evaluations)(
        lambda x, t: (MEAN - x) / (1 - t), FlowMatching(), Recorder((64, 1, 1, 1))
    )
    torch.testing.assert_close(x, torch.full_like(x, MEAN), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Heun, 2)])
def test_the_error_of_ode_samplers_falls_with_their_order(sampler, order):
    # In one dimension the flow map is monotone and takes N(0, 1) to N(mean, std^2): x_1 = mean + std noise.
    def error(num_evaluations):
        record = Recorder((100, 1, 1, 1))
        x = sampler(num_evaluations=num_evaluations)(gaussian_velocity, FlowMatching(), record)
        return (x - (MEAN + STD * record.drawn[0])).abs().max()

    # Halving the step again and again brings the ratio to 2^order; at 256 it is within 5 % of it in float64.
    assert math.log2(error(256) / error(512)) == pytest.approx(order, abs=0.07)
    assert error(512) < 0.01


def test_without_diffusion_the_sde_is_eulers_method():
    noise = torch.randn(20, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of_sde = EulerMaruyama(num_evaluations=20, diffusion_norm=0.0, last_step_size=0.05)
    x = [sampler(gaussian_velocity, FlowMatching(), lambda: noise) for sampler in (of_sde, Euler(num_evaluations=20))]
    torch.testing.assert_close(*x)


@pytest.mark.parametrize(("sampler", "of_noise"), [(Euler(num_evaluations=1), 0.0), (Heun(num_evaluations=2), 0.5)])
def test_one_ode_step_from_noise_is_known(sampler, of_noise):
    # v(noise, 0) = mean - noise and v(mean, 1) = mean: Euler gives the mean, Heun mean + noise / 2.
    record = Recorder((10, 1, 1, 1))
    x = sampler(gaussian_velocity, FlowMatching(), record)
    torch.testing.assert_close(x, MEAN + of_noise * record.drawn[0])


def test_one_sde_evaluation_from_noise_is_known():
    # x + v - (D / sigma) noise with v = mean - noise and D / sigma = 1/2.
    record = Recorder((10, 1, 1, 1))
    x = EulerMaruyama(num_evaluations=1, diffusion_norm=0.5)(gaussian_velocity, FlowMatching(), record)
    torch.testing.assert_close(x, MEAN - record.drawn[0] / 2)


@every_counted_sampler
def test_images_do_not_depend_on_their_neighbours(name):
    together = run(name, ImageNoise(3, range(8), SHAPE))
    alone = torch.cat([run(name, ImageNoise(3, [i], SHAPE)) for i in range(8)])
    assert torch.equal(together, alone)


def test_the_noise_of_an_image_is_a_function_of_seed_and_index():
    together, alone = ImageNoise(3, [2, 5, 7], SHAPE), ImageNoise(3, [5], SHAPE)
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])


def test_the_noise_is_standard_normal_and_new_at_every_call():
    draw = ImageNoise(0, range(100), (1, 20, 20))
    first, second = draw(), draw()  # 40,000 numbers each
    assert abs(first.mean()) < 4 / 200
    assert abs(first.var() - 1) < 4 * math.sqrt(2) / 200
    assert abs((first * second).mean()) < 4 / 200


def test_the_noise_leaves_the_default_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    ImageNoise(0, range(2), SHAPE)()
    assert torch.equal(torch.get_rng_state(), state)


def test_mixed_seeds_do_not_collide_on_a_grid():
    mixed = {mix_seeds(a, b) for a in range(300) for b in range(300)}
    assert len(mixed) == 300 * 300
    assert all(0 <= seed < 2**63 for seed in mixed)


def test_mixed_seeds_differ_for_swapped_arguments():
    assert all(mix_seeds(a, b) != mix_seeds(b, a) for a in range(60) for b in range(a))


def test_mixing_starts_as_splitmix64():
    # The first output of splitmix64 from state 0 (Vigna's reference implementation) is 0xe220a8397b1dcdaf.
    assert mix_seeds(0) == 0xE220A8397B1DCDAF >> 1
