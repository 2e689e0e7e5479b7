"""The loss on the velocity of a network that predicts the data, against the formulas in float64."""

import math

import pytest
import torch

from redi.core.channels import Channels
from redi.core.clocks import Lead
from redi.core.objective import JointObjective
from redi.core.processes.clocked import Clocked
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.vp import VP

CHANNELS = Channels(image=2, z=3)
N = 8


def tensors(n=N):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, 5, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))


def losses(process, t, prediction, x, noise, **settings):
    objective = JointObjective(channels=CHANNELS, num_classes=4, process=process, **settings)
    return objective.losses(lambda x_t, *_: prediction, x, torch.zeros(len(x)), t, noise, torch.zeros(len(x)) > 0)


def on_velocity(path=FlowMatching, **settings):
    return path(prediction="data", loss_on="velocity", **settings)


@pytest.mark.parametrize("clamp", [0.05, 0.3])
def test_both_forms_of_the_loss_are_equal_on_the_linear_path(clamp):
    x, noise, prediction = tensors()
    t = torch.linspace(0, 0.999, N, dtype=torch.float64)
    s = t[:, None, None, None]
    divisor = (1 - s).clamp(min=clamp)
    x_t = s * x + (1 - s) * noise
    of_velocities = ((prediction - x_t) / divisor - (x - x_t) / divisor).square()
    of_data = (prediction - x).square() / divisor**2
    torch.testing.assert_close(of_velocities, of_data, rtol=1e-10, atol=0)
    found = losses(on_velocity(velocity_clamp=clamp), t, prediction, x, noise, representation_weight=0.5)
    expected = of_data[:, :2].mean() + 0.5 * of_data[:, 2:].mean()
    torch.testing.assert_close(found["loss"].double(), expected, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_weighted_error_of_the_data():
    x, noise, prediction = tensors()
    prediction.requires_grad_()
    t = torch.linspace(0, 0.999, N, dtype=torch.float64)
    losses(on_velocity(), t, prediction, x, noise, representation_weight=0.0)["loss"].backward()
    weight = (1 - t).clamp(min=0.05)[:, None, None, None] ** -2
    expected = (2 * weight * (prediction - x)).detach()[:, :2] / x[:, :2].numel()
    torch.testing.assert_close(prediction.grad[:, :2], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("path", [FlowMatching, GVP, VP])
def test_away_from_the_clamp_the_loss_is_that_of_a_network_that_predicts_the_velocity(path):
    """The data that a predicted velocity implies has the squared error of that velocity."""
    x, noise, velocity = tensors()
    plain = path()
    for t in (0.05, 0.4, 0.9):
        x_t, target = plain.corrupt(x, noise, t)
        error = on_velocity(path).error(plain.clean(velocity, x_t, t), x, noise, t)
        torch.testing.assert_close(error, velocity - target, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [FlowMatching, GVP, VP])
@pytest.mark.parametrize("t", [0.02, 0.5, 0.99, 0.999])
def test_the_error_is_the_difference_of_the_velocities_that_samplers_take(path, t):
    x, noise, prediction = tensors()
    process = on_velocity(path, velocity_clamp=0.1)
    x_t, target = process.corrupt(x, noise, t)
    assert target is x
    difference = process.velocity(prediction, x_t, t) - process.velocity(target, x_t, t)
    torch.testing.assert_close(process.error(prediction, x, noise, t), difference, rtol=1e-8, atol=1e-8)
    per_sample = process.error(prediction, x, noise, torch.full((N,), t, dtype=torch.float64))
    torch.testing.assert_close(per_sample, difference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.94, 0.96, 0.999])
def test_samplers_divide_by_the_same_clamp(t):
    x, noise, prediction = tensors()
    x_t = t * x + (1 - t) * noise
    difference, plain = prediction - x_t, FlowMatching(prediction="data")
    torch.testing.assert_close(on_velocity().velocity(prediction, x_t, t), difference / max(1 - t, 0.05))
    torch.testing.assert_close(plain.velocity(prediction, x_t, t), difference / (1 - t))


def test_every_group_has_the_clamp_of_its_own_time():
    x, noise, prediction = tensors()
    clock = Lead(offset=0.3).for_channels(CHANNELS)
    s = torch.linspace(0.05, 0.75, N, dtype=torch.float64)  # the features end at s = 0.77
    found = losses(on_velocity(), s, prediction, x, noise, clock=clock)
    for name, columns in (("image", slice(2)), ("z", slice(2, 5))):
        t = torch.tensor([clock.time(name, float(value)) for value in s], dtype=torch.float64)
        divisor = (1 - t).clamp(min=0.05)[:, None, None, None]
        expected = ((prediction - x)[:, columns] / divisor).square().mean()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=0)
    process = Clocked(on_velocity(), clock).for_channels(CHANNELS)
    t = clock.time("image", 0.5)
    x_t = process.mix(x, noise, 0.5)
    found = process.velocity(prediction, x_t, 0.5)[:, :2]
    torch.testing.assert_close(found, 1.3 * (prediction - x_t)[:, :2] / (1 - t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_on": "velocity"}, "loss_on = 'velocity' with FlowMatching.prediction = 'velocity': set prediction to"),
        ({"loss_on": "data", "prediction": "data"}, "FlowMatching.loss_on = 'data': must be 'prediction' or"),
        ({"loss_on": "velocity", "prediction": "data", "velocity_clamp": 0.0}, r"velocity_clamp = 0.0: must be in \(0"),
        ({"velocity_clamp": math.nan}, "velocity_clamp = nan: must be in"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(**settings)
