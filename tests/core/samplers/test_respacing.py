"""The timesteps that samplers of discrete processes visit."""

import numpy as np
import pytest
import torch

from redi.core.channels import Channels
from redi.core.processes.ddpm import DDPM
from redi.core.samplers.ancestral import Ancestral
from redi.core.samplers.ddim import DDIM
from redi.core.samplers.respacing import respaced_steps


def test_one_section_has_its_ends_and_even_distances():
    assert respaced_steps(1000, 250) == respaced_steps(1000, "250") == respaced_steps(1000, [250])
    steps = respaced_steps(1000, 250)
    assert (len(steps), steps[0], steps[-1]) == (250, 0, 999)
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} == {4, 5}
    assert steps == np.linspace(0, 999, 250).round().astype(int).tolist()  # of diffusers' 'linspace'


def test_every_section_has_its_own_count():
    assert respaced_steps(12, "2,3,4") == [0, 3, 4, 6, 7, 8, 9, 10, 11]  # 5.5 is rounded to even
    assert respaced_steps(12, [2, 3, 4]) == respaced_steps(12, "2, 3, 4")
    assert respaced_steps(300, "10,15,20") == sorted(set(respaced_steps(300, "10,15,20")))


def test_a_remainder_goes_to_the_first_sections():
    assert respaced_steps(11, "4,4,3") == list(range(11))
    assert respaced_steps(11, "2,2,2") == [0, 3, 4, 7, 8, 10]


def test_ddim_strides_from_the_first_timestep():
    assert respaced_steps(1000, "ddim25") == list(range(0, 1000, 40))
    assert respaced_steps(1000, "ddim250") == list(range(0, 1000, 4))
    assert respaced_steps(10, "ddim4") == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("respacing", "message"),
    [
        ("ddim300", "no integer stride visits 300 of 1000 timesteps"),
        ("600,10", "section 0 has only 500 of the 1000 timesteps, not 600"),
        (1001, "section 0 has only 1000"),
        ("10,0", "at least 1"),
        ("ddim0", "at least 1"),
        ("fast", "must be a count"),
        ("10;10", "must be a count"),
        ([], "must be a count"),
        ([2.5], "must be a count"),
        (True, "must be a count"),
    ],
)
def test_a_respacing_that_makes_no_sense_is_refused(respacing, message):
    with pytest.raises(ValueError, match=message):
        respaced_steps(1000, respacing)


@pytest.mark.parametrize("sampler_class", [Ancestral, DDIM])
@pytest.mark.parametrize(("respacing", "count"), [("ddim25", 25), ("10,10,20", 40), ([10, 5], 15), (12, 12)])
def test_the_respacing_decides_the_number_of_evaluations(sampler_class, respacing, count):
    times, process = [], DDPM(num_timesteps=1000, learned_variance=()).for_channels(Channels(image=1))

    def denoise(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sampler = sampler_class(respacing=respacing)
    sampler(denoise, process, lambda: torch.zeros(1, 1, 1, 1))
    assert sampler.num_evaluations == len(times) == count
    assert sorted(process.step(t) - 1 for t in times) == respaced_steps(1000, respacing)


@pytest.mark.parametrize("sampler_class", [Ancestral, DDIM])
def test_two_numbers_of_evaluations_are_refused(sampler_class):
    with pytest.raises(ValueError, match="respacing = 'ddim25' means 25 .*num_evaluations = 50: set only one"):
        sampler_class(num_evaluations=50, respacing="ddim25")


@pytest.mark.parametrize("sampler_class", [Ancestral, DDIM])
def test_more_evaluations_than_timesteps_are_refused(sampler_class):
    with pytest.raises(ValueError, match="num_evaluations = 250, but DDPM.num_timesteps = 100: set"):
        sampler_class().check(DDPM(num_timesteps=100))


@pytest.mark.parametrize("sampler_class", [Ancestral, DDIM])
def test_one_evaluation_of_a_discrete_process_is_refused(sampler_class):
    with pytest.raises(ValueError, match="num_evaluations = 1 visits timestep 0 alone: must be at least 2"):
        sampler_class(num_evaluations=1).check(DDPM())
