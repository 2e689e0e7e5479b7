"""Samplers against closed forms: for Gaussian data the velocity field, the flow map and the SDE are known exactly."""

import math
from functools import partial

import pytest
import torch

from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers import ImageNoise, samplers
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.heun import Heun
from redi.core.seeds import mix_seeds

SHAPE = (2, 3, 3)
MEAN, STD = 0.7, 0.5
every_sampler = pytest.mark.parametrize("name", samplers)


def gaussian_velocity(x, t, mean=MEAN, std=STD):
    """E[x - noise | x_t] for data N(mean, std^2): the joint distribution is Gaussian, so it is affine in x_t."""
    variance = t**2 * std**2 + (1 - t) ** 2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


class Recorder:
    """Draws normal numbers in float64 and keeps them."""

    def __init__(self, shape, seed=0):
        self.generator, self.shape, self.drawn = torch.Generator().manual_seed(seed), shape, []

    def __call__(self):
        self.drawn.append(torch.randn(self.shape, generator=self.generator, dtype=torch.float64))
        return self.drawn[-1]


def times_of(sampler):
    """The t at which a sampler evaluates the network."""
    times = []

    def denoise(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sampler(denoise, FlowMatching(), Recorder((1, 1, 1, 1)))
    return times


@every_sampler
@pytest.mark.parametrize("num_evaluations", [2, 6, 250])
def test_exactly_num_evaluations_calls_are_made(name, num_evaluations):
    assert len(times_of(samplers[name](num_evaluations=num_evaluations))) == num_evaluations


@every_sampler
def test_the_result_has_the_shape_and_type_of_the_noise(name):
    draw = ImageNoise(0, range(3), SHAPE)
    x = samplers[name](num_evaluations=6)(gaussian_velocity, FlowMatching(), draw)
    assert x.shape == (3, *SHAPE)
    assert x.dtype == torch.float32


@every_sampler
def test_a_seed_decides_the_result(name):
    def run(seed):
        return samplers[name](num_evaluations=6)(gaussian_velocity, FlowMatching(), ImageNoise(seed, range(3), SHAPE))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@every_sampler
def test_recorded_noise_gives_the_same_result_again(name):
    record = Recorder((2, *SHAPE))
    first = samplers[name](num_evaluations=6)(gaussian_velocity, FlowMatching(), record)
    replay = iter(record.drawn)
    assert torch.equal(
        first, samplers[name](num_evaluations=6)(gaussian_velocity, FlowMatching(), lambda: next(replay))
    )


@every_sampler
def test_all_times_lie_between_noise_and_data(name):
    times = times_of(samplers[name](num_evaluations=10))
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] <= 1 + 1e-12


@every_sampler
def test_no_evaluations_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.num_evaluations = 0"):
        samplers[name](num_evaluations=0)


def test_an_odd_number_of_evaluations_is_refused_by_heun():
    with pytest.raises(ValueError, match="must be even"):
        Heun(num_evaluations=7)


@pytest.mark.parametrize("last_step", [0.0, -0.1, 1.5])
def test_a_last_step_outside_the_unit_interval_is_refused(last_step):
    with pytest.raises(ValueError, match="last_step"):
        EulerMaruyama(last_step=last_step)


@pytest.mark.parametrize("num_evaluations", [1, 2, 7])
def test_euler_lands_on_a_point_mass_in_any_number_of_steps(num_evaluations):
    # The paths to a point are straight lines, which Euler follows without error.
    x = Euler(num_evaluations=num_evaluations)(lambda x, t: (MEAN - x) / (1 - t), FlowMatching(), Recorder((64,)))
    torch.testing.assert_close(x, torch.full_like(x, MEAN), rtol=0, atol=1e-12)


def test_euler_maruyama_lands_near_a_point_mass():
    # The last step leaves half of the noise that is in x at 1 - last_step, whose deviation is about last_step.
    sampler = EulerMaruyama(num_evaluations=250, diffusion=1.0, last_step=0.04)
    x = sampler(lambda x, t: (MEAN - x) / (1 - t), FlowMatching(), Recorder((10_000,)))
    assert abs(x.mean() - MEAN) < 4 * 0.04 / math.sqrt(10_000)
    assert x.std() < 0.04


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Heun, 2)])
def test_the_error_of_ode_samplers_falls_with_their_order(sampler, order):
    # In one dimension the flow map is monotone and takes N(0, 1) to N(mean, std^2): x_1 = mean + std noise.
    def error(num_evaluations):
        record = Recorder((100,))
        x = sampler(num_evaluations=num_evaluations)(gaussian_velocity, FlowMatching(), record)
        return (x - (MEAN + STD * record.drawn[0])).abs().max()

    # Halving the step again and again brings the ratio to 2^order; at 256 it is within 5 % of it in float64.
    assert math.log2(error(256) / error(512)) == pytest.approx(order, abs=0.07)
    assert error(512) < 0.01


@pytest.mark.parametrize("diffusion", [1.0, 2.0])
def test_samples_of_the_sde_have_the_mean_and_variance_of_the_data(diffusion):
    # 40,000 samples: standard errors std/200 and std^2 sqrt(2)/200; small steps make the bias smaller than those.
    sampler = EulerMaruyama(num_evaluations=2000, diffusion=diffusion, last_step=0.002)
    x = sampler(gaussian_velocity, FlowMatching(), Recorder((40_000,)))
    assert abs(x.mean() - MEAN) < 4 * STD / 200
    assert abs(x.var() - STD**2) < 4 * STD**2 * math.sqrt(2) / 200


@pytest.mark.parametrize("num_evaluations", [10, 250])
@pytest.mark.parametrize("diffusion", [0.0, 1.0, 2.0])
def test_the_sde_sampler_equals_the_equation_written_out(num_evaluations, diffusion):
    # Score from velocity, drift v + w/2 score with w = diffusion sigma, mean-only last step of 0.04.
    record = Recorder((50,))
    sampler = EulerMaruyama(num_evaluations=num_evaluations, diffusion=diffusion)
    x = sampler(gaussian_velocity, FlowMatching(), record)
    last = 0.04 if num_evaluations == 250 else 1 / num_evaluations
    times = torch.linspace(0, 1 - last, num_evaluations, dtype=torch.float64)
    dt = times[1] - times[0]
    expected = record.drawn[0]
    for k, t in enumerate(times):
        velocity = gaussian_velocity(expected, t)
        score = (t * velocity - expected) / (1 - t)
        drift = velocity + diffusion * (1 - t) / 2 * score
        final = k == num_evaluations - 1
        noise = 0 if final else (diffusion * (1 - t) * dt).sqrt() * record.drawn[k + 1]
        expected = expected + (last if final else dt) * drift + noise
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)  # the last t differs by rounding


def test_the_last_step_of_the_sde_has_its_own_length():
    assert times_of(EulerMaruyama(num_evaluations=250, last_step=0.04)) == pytest.approx(
        [0.96 * k / 249 for k in range(250)]
    )


@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 25])
def test_few_sde_evaluations_are_equal_steps(num_evaluations):
    times = times_of(EulerMaruyama(num_evaluations=num_evaluations))
    assert times == pytest.approx([k / num_evaluations for k in range(num_evaluations)])


def test_no_noisy_sde_step_is_longer_than_the_noise_free_one():
    for num_evaluations in range(1, 60):
        ends = [*times_of(EulerMaruyama(num_evaluations=num_evaluations)), 1.0]
        steps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        assert max(steps) <= steps[-1] + 1e-12


def test_without_diffusion_the_sde_is_eulers_method():
    noise = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = [
        sampler(gaussian_velocity, FlowMatching(), lambda: noise)
        for sampler in (EulerMaruyama(num_evaluations=20, diffusion=0.0, last_step=0.05), Euler(num_evaluations=20))
    ]
    torch.testing.assert_close(*x)


def test_a_negative_diffusion_is_refused():
    with pytest.raises(ValueError, match="EulerMaruyama.diffusion = -1"):
        EulerMaruyama(diffusion=-1)


def test_no_noise_is_added_in_the_last_step_of_the_sde():
    record = Recorder((4,))
    EulerMaruyama(num_evaluations=5)(gaussian_velocity, FlowMatching(), record)
    assert len(record.drawn) == 1 + 4


@pytest.mark.parametrize(("sampler", "of_noise"), [(Euler(num_evaluations=1), 0.0), (Heun(num_evaluations=2), 0.5)])
def test_one_ode_step_from_noise_is_known(sampler, of_noise):
    # v(noise, 0) = mean - noise and v(mean, 1) = mean: Euler gives the mean, Heun mean + noise / 2.
    record = Recorder((10,))
    x = sampler(gaussian_velocity, FlowMatching(), record)
    torch.testing.assert_close(x, MEAN + of_noise * record.drawn[0])


def test_one_sde_evaluation_from_noise_is_known():
    # x + v - diffusion noise / 2 with v = mean - noise.
    record = Recorder((10,))
    x = EulerMaruyama(num_evaluations=1, diffusion=1.0)(gaussian_velocity, FlowMatching(), record)
    torch.testing.assert_close(x, MEAN - record.drawn[0] / 2)


@every_sampler
def test_images_do_not_depend_on_their_neighbours(name):
    sample = partial(samplers[name](num_evaluations=6), gaussian_velocity, FlowMatching())
    together = sample(ImageNoise(3, range(8), SHAPE))
    alone = torch.cat([sample(ImageNoise(3, [i], SHAPE)) for i in range(8)])
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
