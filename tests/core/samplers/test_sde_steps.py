"""The samplers of the SDE: their times, evaluations, draws and refusals."""

import math

import pytest
import torch

from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.vp import VP
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.sde import DIFFUSION_FORMS, LAST_STEPS
from redi.core.samplers.stochastic_heun import StochasticHeun

every_sampler = pytest.mark.parametrize("sampler_class", [EulerMaruyama, StochasticHeun])
every_form = pytest.mark.parametrize("form", DIFFUSION_FORMS)
every_last_step = pytest.mark.parametrize("last_step", LAST_STEPS)
every_path = pytest.mark.parametrize("path", [FlowMatching, GVP, VP])


def times_of(sampler, process=None):
    """The t at which a sampler evaluates the network."""
    times = []

    def denoise(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sampler(denoise, process or FlowMatching(), lambda: torch.zeros(1, 1, 1, 1))
    return times


@every_sampler
@every_last_step
@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 4, 9, 250])
def test_exactly_as_many_evaluations_are_made_as_are_asked_for(sampler_class, last_step, num_evaluations):
    sampler = sampler_class(num_evaluations=num_evaluations, last_step=last_step)
    assert len(times_of(sampler)) == num_evaluations


@every_sampler
def test_no_noise_is_drawn_in_the_last_step(sampler_class):
    draws = []
    sampler = sampler_class(num_evaluations=5)
    sampler(lambda x, t: x, FlowMatching(), lambda: draws.append(1) or torch.zeros(1, 1, 1, 1))
    assert len(draws) == 1 + (4 if sampler_class is EulerMaruyama else 2)


def test_the_last_step_of_the_sde_has_its_own_length():
    times = times_of(EulerMaruyama(num_evaluations=250, last_step_size=0.04))
    assert times == pytest.approx([0.96 * k / 249 for k in range(250)])


@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 25])
def test_few_evaluations_are_equal_steps(num_evaluations):
    times = times_of(EulerMaruyama(num_evaluations=num_evaluations, last_step_size=None))
    assert times == pytest.approx([k / num_evaluations for k in range(num_evaluations)])


@pytest.mark.parametrize("num_evaluations", [2, 5, 10, 20, 24, 250])
def test_a_last_step_of_a_given_size_begins_where_published_samplers_begin_it(num_evaluations):
    times = times_of(EulerMaruyama(num_evaluations=num_evaluations))
    assert times == pytest.approx(torch.linspace(0, 0.96, num_evaluations, dtype=torch.float64).tolist())


@every_sampler
def test_no_noisy_step_is_longer_than_the_noise_free_one(sampler_class):
    for num_evaluations in range(1, 60):
        ends = [*sorted(set(times_of(sampler_class(num_evaluations=num_evaluations, last_step_size=None)))), 1.0]
        steps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        assert max(steps) <= steps[-1] + 1e-12


@every_sampler
@every_form
@every_last_step
@every_path
def test_no_time_leaves_the_interval_of_the_process(sampler_class, form, last_step, path):
    process = path(prediction="score", margin=0.01)
    first, last = process.t_range()
    for size in (1e-6, 0.04, 1.0):
        sampler = sampler_class(num_evaluations=5, diffusion_form=form, last_step=last_step, last_step_size=size)
        times = times_of(sampler, process)
        assert times == sorted(times)
        assert first <= times[0] and times[-1] <= last


@every_sampler
@pytest.mark.parametrize(
    ("setting", "value"),
    [("diffusion_norm", -1), ("diffusion_norm", math.nan), ("diffusion_form", "cubic"), ("last_step", "none"),
     ("last_step_size", 0.0), ("last_step_size", 1.5)],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_refused(sampler_class, setting, value):
    with pytest.raises(ValueError, match=f"{sampler_class.__name__}.{setting} = "):
        sampler_class(**{setting: value})


@every_sampler
def test_the_steps_have_their_names_of_version_0_1_too(sampler_class):
    assert sampler_class.kick is sampler_class.add_noise and sampler_class.land is sampler_class.final_step
