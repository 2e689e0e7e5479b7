import pytest
import torch

import redi.core.processes  # noqa: F401 - fills the registry
from redi.core.processes.flow_matching import FlowMatching
from redi.core.registry import registries

PROCESSES = list(registries["processes"].values())
TIMES = [0.0, 1e-3, 0.25, 0.5, 0.999, 1.0]

every_process = pytest.mark.parametrize("process_class", PROCESSES)
every_time = pytest.mark.parametrize("t", TIMES)


def data_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))


@every_process
@every_time
def test_the_perfect_prediction_gives_back_data_and_noise(process_class, t):
    process, (x, noise) = process_class(), data_and_noise()
    x_t, target = process.corrupt(x, noise, t)
    torch.testing.assert_close(process.clean(target, x_t, t), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.noise(target, x_t, t), noise, rtol=1e-12, atol=1e-12)


@every_process
@pytest.mark.parametrize("t", [0.01, 0.25, 0.5, 0.99])
def test_velocity_is_the_time_derivative_of_the_path(process_class, t):
    process, (x, noise) = process_class(), data_and_noise()
    x_t, target = process.corrupt(x, noise, t)
    h = 1e-4
    slope = (process.corrupt(x, noise, t + h)[0] - process.corrupt(x, noise, t - h)[0]) / (2 * h)
    torch.testing.assert_close(process.velocity(target, x_t, t), slope, rtol=1e-6, atol=1e-6)


@every_process
@every_time
def test_the_path_is_its_clean_part_plus_sigma_noise(process_class, t):
    process, (x, noise) = process_class(), data_and_noise()
    only_data, _ = process.corrupt(x, torch.zeros_like(x), t)
    x_t, _ = process.corrupt(x, noise, t)
    torch.testing.assert_close(x_t, only_data + process.sigma(t) * noise, rtol=1e-12, atol=1e-12)


@every_process
def test_the_path_ends_in_the_data_exactly(process_class):
    x, noise = data_and_noise()
    assert torch.equal(process_class().corrupt(x, noise, 1.0)[0], x)
    assert process_class().sigma(1.0) == 0


@every_process
def test_a_tensor_of_times_gives_every_sample_its_own(process_class):
    process, (x, noise) = process_class(), data_and_noise()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    x_t, target = process.corrupt(x, noise, t[:, None, None, None])
    for i, own in enumerate(t.tolist()):
        alone, alone_target = process.corrupt(x[i], noise[i], own)
        torch.testing.assert_close(x_t[i], alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(target[i], alone_target, rtol=1e-12, atol=1e-12)


@every_process
def test_conversions_pass_the_gradient_to_the_prediction(process_class):
    process, (x_t, prediction) = process_class(), data_and_noise()
    for convert in (process.velocity, process.clean, process.noise):
        prediction = prediction.detach().requires_grad_()
        convert(prediction, x_t, 0.4).sum().backward()
        assert (prediction.grad != 0).all()


@every_time
def test_flow_matching_starts_in_noise_and_mixes_linearly(t):
    x, noise = data_and_noise()
    x_t, target = FlowMatching().corrupt(x, noise, t)
    torch.testing.assert_close(x_t, noise + t * (x - noise), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, x - noise, rtol=0, atol=0)


def test_clean_and_noise_of_any_prediction_lie_on_the_path_through_x_t():
    x_t, prediction = data_and_noise()
    process, t = FlowMatching(), 0.3
    x, noise = process.clean(prediction, x_t, t), process.noise(prediction, x_t, t)
    again, target = process.corrupt(x, noise, t)
    torch.testing.assert_close(again, x_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target, prediction, rtol=1e-12, atol=1e-12)


def test_flow_matching_is_that_of_diffusers_with_time_reversed():
    """diffusers: sigma = 1 - t, x = (1 - sigma) data + sigma noise, and velocity = noise - data = minus ours."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(10)
    x, noise = (a.float() for a in data_and_noise())
    process = FlowMatching()
    current, _ = process.corrupt(x, noise, 1 - scheduler.sigmas[0])
    for k, timestep in enumerate(scheduler.timesteps):
        t = 1 - scheduler.sigmas[k]
        x_t, target = process.corrupt(x, noise, t)
        theirs = scheduler.scale_noise(x, timestep[None], noise)
        torch.testing.assert_close(x_t, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(current, x_t, rtol=1e-5, atol=1e-5)
        current = scheduler.step(-process.velocity(target, x_t, t), timestep, current).prev_sample
    torch.testing.assert_close(current, x, rtol=1e-5, atol=1e-5)
