"""Power-function averages, against weighted sums over all steps in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from redi.core.ema import EMA, PowerFunctionEMA
from redi.core.ema.profile import exponent

SIGMAS = (0.05, 0.1, 0.25, 12**-0.5)


class Walk(nn.Module):
    """A model whose weights follow a random walk, and the history of the walk."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.a, self.b = nn.Parameter(torch.zeros(3, 2, dtype=dtype)), nn.Parameter(torch.ones((), dtype=dtype))
        self.seen: list[torch.Tensor] = []  # the history of a

    @torch.no_grad()
    def go(self, ema, steps: range) -> None:
        for step in steps:
            for parameter in (self.a, self.b):
                parameter += torch.randn(parameter.shape, generator=self.generator, dtype=parameter.dtype)
            self.seen.append(self.a.clone())
            ema.update(self, step)


def integral(sigma_rel: float, power: int) -> float:
    """The integral of the density of the average over a run of length 1, times a power of time (midpoint rule)."""
    time = (np.arange(1_000_000) + 0.5) / 1_000_000
    gamma = exponent(sigma_rel)
    return float(np.mean((gamma + 1) * time**gamma * time**power))


@pytest.mark.parametrize("sigma_rel", SIGMAS)
def test_sigma_rel_is_the_deviation_of_the_density(sigma_rel):
    assert integral(sigma_rel, 0) == pytest.approx(1, abs=1e-6)
    variance = integral(sigma_rel, 2) - integral(sigma_rel, 1) ** 2
    assert variance**0.5 == pytest.approx(sigma_rel, rel=1e-5)


def test_the_exponents_of_the_paper():
    # EDM2, section 3.2: sigma_rel = 0.05 and 0.10.
    assert [round(exponent(sigma), 2) for sigma in (0.05, 0.1)] == [16.97, 6.94]


@pytest.mark.parametrize("sigma_rel", SIGMAS)
def test_the_average_is_the_sum_of_all_weights_by_the_integral_of_the_density(sigma_rel):
    walk = Walk()
    ema = PowerFunctionEMA(model=walk, sigma_rels=[sigma_rel])
    walk.go(ema, range(200))
    edges = np.linspace(0, 1, 201) ** (exponent(sigma_rel) + 1)
    expected = sum(share * a for share, a in zip(np.diff(edges), walk.seen, strict=True))
    torch.testing.assert_close(ema.parameters["a"], expected, rtol=1e-12, atol=1e-12)


def test_of_equal_weights_for_all_it_is_the_mean():
    walk = Walk()
    ema = PowerFunctionEMA(model=walk, sigma_rels=[12**-0.5])
    walk.go(ema, range(50))
    torch.testing.assert_close(ema.parameters["a"], torch.stack(walk.seen).mean(0), rtol=1e-12, atol=1e-12)


def test_initial_weights_have_no_weight():
    walk = Walk(dtype=torch.float32)
    ema = PowerFunctionEMA(model=walk)
    walk.go(ema, range(1))
    for average in ema.averages.values():
        assert torch.equal(average["a"], walk.a)


def test_every_average_is_what_it_is_alone_and_the_first_is_the_one_in_use():
    ema = PowerFunctionEMA(model=Walk(), sigma_rels=(0.1, 0.05))
    Walk().go(ema, range(20))
    for sigma_rel in (0.1, 0.05):
        alone = PowerFunctionEMA(model=Walk(), sigma_rels=(sigma_rel,))
        Walk().go(alone, range(20))
        assert torch.equal(alone.parameters["a"], ema.averages[sigma_rel]["a"])
    assert ema.parameters is ema.averages[0.1]


def test_stored_and_taken_over_it_goes_on_as_if_nothing_had_been():
    unbroken, walk = PowerFunctionEMA(model=Walk(dtype=torch.float32)), Walk(dtype=torch.float32)
    walk.go(unbroken, range(7))
    parameters = {name: tensor.clone() for name, tensor in unbroken.parameters.items()}
    extra = {name: tensor.clone() for name, tensor in unbroken.extra_state().items()}
    resumed = PowerFunctionEMA(model=Walk(seed=9, dtype=torch.float32))
    resumed.load(parameters, extra)
    for step in range(7, 12):
        walk.go(unbroken, range(step, step + 1))
        resumed.update(walk, step)
    for sigma_rel, average in unbroken.averages.items():
        for name, tensor in average.items():
            assert torch.equal(resumed.averages[sigma_rel][name], tensor)
    assert not torch.equal(resumed.parameters["a"], parameters["a"])  # a copy was taken


@pytest.mark.parametrize("others", [None, (0.05,), (0.1, 0.05), (0.05, 0.1, 0.2)])
def test_what_other_settings_stored_is_refused(others):
    other = PowerFunctionEMA(model=Walk(), sigma_rels=others) if others else EMA(model=Walk())
    with pytest.raises(
        ValueError, match=r"the checkpoint holds averages .* PowerFunctionEMA.sigma_rels = \(0.05, 0.1\)"
    ):
        PowerFunctionEMA(model=Walk()).load(other.parameters, other.extra_state())


def test_an_exponential_average_refuses_what_a_power_function_stored():
    stored = PowerFunctionEMA(model=Walk())
    with pytest.raises(ValueError, match="the checkpoint holds several averages, but train.ema = EMA has one"):
        EMA(model=Walk()).load(stored.parameters, stored.extra_state())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_snapshot_is_due_every_so_many_steps_and_holds_every_average(dtype):
    ema = PowerFunctionEMA(model=Walk(), snapshot_every=4, snapshot_dtype=dtype)
    Walk().go(ema, range(8))
    assert [step for step in range(1, 13) if ema.snapshot(step) is not None] == [4, 8, 12]
    groups = ema.snapshot(8)
    assert list(groups) == ["sigma_rel_0.05", "sigma_rel_0.1"]
    for group, average in zip(groups.values(), ema.averages.values(), strict=True):
        assert torch.equal(group["a"], average["a"].to(getattr(torch, dtype)))


def test_without_snapshots_none_is_due():
    ema = PowerFunctionEMA(model=Walk(), snapshot_every=0)
    assert all(ema.snapshot(step) is None for step in (0, 1, 4096))
    assert EMA(model=Walk()).snapshot(4096) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_rels": [0.3]}, "PowerFunctionEMA.sigma_rels: the length 0.3 of an average must be"),
        ({"sigma_rels": [0.0]}, "greater than 0 and at most 0.2887"),
        ({"sigma_rels": [float("nan")]}, "sigma_rels: the length nan"),
        ({"sigma_rels": ["0.1"]}, "sigma_rels: the length '0.1'"),
        ({"sigma_rels": []}, "must be a list of lengths"),
        ({"sigma_rels": 0.1}, "sigma_rels = 0.1: must be a list of lengths"),
        ({"sigma_rels": (0.1, 0.1)}, "every length must be different"),
        ({"snapshot_every": -1}, "snapshot_every = -1: must be a number of steps, or 0"),
        ({"snapshot_every": 2.5}, "snapshot_every = 2.5"),
        ({"snapshot_dtype": "int8"}, "snapshot_dtype = 'int8': must be one of float32, float16, bfloat16"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PowerFunctionEMA(model=Walk(), **settings)
