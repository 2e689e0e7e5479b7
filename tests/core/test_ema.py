import pytest
import torch
from torch import nn

from redi.core.ema import EMA


def model(value: float) -> nn.Module:
    linear = nn.Linear(3, 2)
    for parameter in linear.parameters():
        nn.init.constant_(parameter, value)
    return linear


def test_average_of_constant_weights_approaches_them_geometrically():
    ema = EMA(model=model(0.0), decay=0.9)
    for step in range(20):
        ema.update(model(1.0), step)
    for average in ema.parameters.values():
        torch.testing.assert_close(average, torch.full_like(average, 1 - 0.9**20), rtol=1e-5, atol=0)


def test_average_is_the_weighted_sum_of_all_weights_seen():
    ema = EMA(model=model(2.0), decay=0.5)
    for step, value in enumerate((3.0, -1.0, 7.0)):
        ema.update(model(value), step)
    expected = 0.5**3 * 2 + 0.5 * (0.5**2 * 3 - 0.5 * 1 + 7)
    for average in ema.parameters.values():
        torch.testing.assert_close(average, torch.full_like(average, expected))


@pytest.mark.parametrize("decay", [0.15, 0.9999])
def test_warmup_takes_the_smaller_of_decay_and_the_ramp(decay):
    ema = EMA(model=model(0.0), decay=decay, warmup=True)
    expected = 0.0
    for step in range(5):
        rate = min(decay, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * (step + 1)
        ema.update(model(step + 1.0), step)
    for average in ema.parameters.values():
        torch.testing.assert_close(average, torch.full_like(average, expected))


def test_warmup_forgets_the_initial_weights():
    with_warmup, without = (EMA(model=model(1.0), decay=0.9999, warmup=warmup) for warmup in (True, False))
    for step in range(30):
        with_warmup.update(model(0.0), step)
        without.update(model(0.0), step)
    assert with_warmup.parameters["bias"].max() < 1e-3
    assert without.parameters["bias"].min() > 0.99


def test_decay_zero_follows_the_weights():
    ema = EMA(model=model(1.0), decay=0.0)
    ema.update(model(5.0), 0)
    assert torch.equal(ema.parameters["weight"], model(5.0).weight)


def test_the_average_starts_as_a_copy_not_a_view():
    net = model(1.0)
    ema = EMA(model=net, decay=0.9)
    nn.init.zeros_(net.weight)
    assert (ema.parameters["weight"] == 1).all()
    assert not any(average.requires_grad for average in ema.parameters.values())


def test_updating_leaves_the_model_alone():
    net = model(1.0)
    EMA(model=model(0.0), decay=0.9).update(net, 0)
    assert (net.weight == 1).all()


def test_a_stored_average_is_copied():
    ema, other = EMA(model=model(3.0)), EMA(model=model(0.0))
    other.load(ema.parameters)
    assert torch.equal(other.parameters["weight"], model(3.0).weight)
    other.update(model(0.0), 0)
    assert (ema.parameters["weight"] == 3).all()  # load copies


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_zero_and_one_is_refused(decay):
    with pytest.raises(ValueError, match=rf"EMA.decay = {decay}: must be in \[0, 1\)"):
        EMA(model=model(0.0), decay=decay)
