"""Time grids: shifts, lists, and the steps that end at kinks."""

import json
import math

import pytest
import torch

from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.vp import VP
from redi.core.samplers import samplers
from redi.core.samplers.euler import Euler
from redi.core.samplers.euler_maruyama import EulerMaruyama
from redi.core.samplers.grid import through_kinks
from redi.core.samplers.heun import Heun
from redi.core.samplers.ode import FixedODE
from redi.core.samplers.stochastic_heun import StochasticHeun

every_class = pytest.mark.parametrize("sampler_class", [Euler, Heun, FixedODE, EulerMaruyama, StochasticHeun])


@every_class
def test_a_shift_is_the_shift_of_published_grids(sampler_class):
    # LightningDiT's t' = 0.3 t / (1 - 0.7 t) on data-time t is a shift of 1 / 0.3.
    sampler, equal = (sampler_class(num_evaluations=12, shift=shift) for shift in (1 / 0.3, 1.0))
    times, equal = sampler.grid(FlowMatching()), torch.tensor(equal.grid(FlowMatching()), dtype=torch.float64)
    end = times[-1]  # 0.96 for the noisy steps of the SDE
    expected = end * 0.3 * (equal / end) / (1 - 0.7 * (equal / end))
    assert times == pytest.approx(expected.tolist(), abs=1e-12)
    assert times[-1] == equal[-1] == (0.96 if sampler_class in (EulerMaruyama, StochasticHeun) else 1)


@every_class
def test_a_list_of_times_is_the_trajectory_and_counts_its_evaluations(sampler_class):
    times, states = [0, 0.1, 0.3, 0.9, 1], []
    sampler = sampler_class(times=times)
    sampler(lambda x, t: 0 * x, FlowMatching(), lambda: torch.zeros(1, 1, 1, 1), trajectory=states)
    assert [t for t, _ in states] == pytest.approx(times)
    counts = {Euler: 4, Heun: 8, FixedODE: 8, EulerMaruyama: 4, StochasticHeun: 7}  # one for the last step of the SDE
    assert sampler.num_evaluations == counts[sampler_class]
    assert sampler_class(times=times, num_evaluations=counts[sampler_class]).times == times


def test_a_list_without_a_last_step_is_noisy_to_its_end():
    sampler = StochasticHeun(times=[0, 0.5, 1], last_step=None)
    assert sampler.num_evaluations == 4 and sampler.grid(FlowMatching()) == [0, 0.5, 0.999]


@pytest.mark.parametrize("process", [FlowMatching(prediction="score"), VP()])
def test_the_range_of_the_process_replaces_the_ends_of_a_list(process):
    first, last = process.t_range()
    assert Euler(times=[0, 0.5, 1]).grid(process) == [first, 0.5, last]
    with pytest.raises(ValueError, match=r"Euler.times has \[0.9999\]: must be between 0(.001)? and 0.999"):
        Euler(times=[0, 0.5, 0.9999, 1]).check(process)


@every_class
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"shift": 0.0}, "shift = 0.0: must be finite and greater than 0"), ({"shift": math.nan}, "shift = nan: must"),
        ({"shift": -2}, "shift = -2: must be"), ({"times": []}, r"times = \[\]: must increase strictly from 0 to 1"),
        ({"times": [0, 0.5, 0.4, 1]}, "times = .*: must increase"), ({"times": [0, 0.5, 0.5, 1]}, "times = .*: must"),
        ({"times": [0, 0.5]}, "times = .*both included"), ({"times": [-0.1, 1]}, "times = .*both included"),
        ({"times": [0, 0.5, 1.5]}, "times = .*: must"), ({"times": [0, math.nan, 1]}, "times = .*: must"),
        ({"times": [0, 0.5, 1], "shift": 2.0}, "shift = 2.0 has no effect on .*.times: set only one"),
        ({"times": [0, 0.5, 1], "num_evaluations": 100}, r"times means \d evaluations, but .*.num_evaluations = 100"),
    ],
)  # fmt: skip
def test_a_grid_that_makes_no_sense_is_refused(sampler_class, settings, match):
    with pytest.raises(ValueError, match=f"{sampler_class.__name__}.{match}"):
        sampler_class(**settings)


@every_class
def test_records_of_equal_steps_are_those_of_version_0_1(sampler_class):
    assert not {"shift", "times"} & set(sampler_class().provenance())
    assert sampler_class(shift=2.0).provenance()["shift"] == 2.0
    record = sampler_class(times=(0, 0.5, 1)).provenance()
    assert record["times"] == [0, 0.5, 1] and json.loads(json.dumps(record)) == record


def test_each_kink_takes_the_nearest_inner_time_and_no_other_moves():
    times = [k / 10 for k in range(11)]
    assert through_kinks(times, (0.23, 0.77), "n") == [0, 0.1, 0.23, 0.3, 0.4, 0.5, 0.6, 0.7, 0.77, 0.9, 1]
    assert through_kinks(times, (0.501, 0.502, 1.0), "n") == [0, 0.1, 0.2, 0.3, 0.4, 0.501, 0.502, 0.7, 0.8, 0.9, 1]
    assert through_kinks(times[::-1], (0.01, 0.97), "n") == [1, 0.97, *times[8:1:-1], 0.01, 0]


def test_times_stay_in_order_for_any_kinks():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        num_steps, num_kinks = (int(n) for n in torch.randint(1, 9, (2,), generator=generator))
        kinks = sorted(torch.rand(num_kinks, generator=generator).double().tolist())
        times = [k / num_steps for k in range(num_steps + 1)]
        if num_kinks > num_steps - 1:
            with pytest.raises(ValueError, match=f"n gives {num_steps} steps, .* at least {num_kinks + 1} steps"):
                through_kinks(times, kinks, "n")
            continue
        moved = through_kinks(times, kinks, "n")
        assert moved == sorted(set(moved)) and set(kinks) <= set(moved) and len(moved) == len(times)
        assert len(set(times) - set(moved)) <= num_kinks


def test_the_grid_is_a_setting_of_every_sampler_with_fixed_steps_alone():
    with_grid = {name for name, cls in samplers.items() if hasattr(cls, "grid")}
    assert with_grid == {"Euler", "Heun", "FixedODE", "EulerMaruyama", "StochasticHeun"}
