"""Combinations of averages, against densities evaluated at every step."""

import numpy as np
import pytest

from redi.core.ema.profile import combine, exponent

CELLS = 10_000  # the number of steps of the run


def density(sigma_rel: float, step: int) -> np.ndarray:
    """Of every step; the mean of its square times CELLS is the integral, up to the width of a step."""
    middle = (np.arange(CELLS) + 0.5) / step
    gamma = exponent(sigma_rel)
    return np.where(middle < 1, (gamma + 1) * np.minimum(middle, 1) ** gamma / step, 0.0)


def snapshots(count: int, sigmas=(0.05, 0.1)) -> list[tuple[float, int]]:
    return [(sigma, CELLS * (k + 1) // count) for k in range(count) for sigma in sigmas]


def errors(stored, weights, wanted) -> np.ndarray:
    """Of sums with these weights (..., stored)."""
    densities, goal = np.stack([density(*profile) for profile in stored]), density(*wanted)
    return np.linalg.norm(weights @ densities - goal, axis=-1) / np.linalg.norm(goal)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.03, 0.07, 0.15, 0.2, 0.25])
@pytest.mark.parametrize("count", [10, 60])
def test_the_error_that_is_told_is_that_of_the_densities(sigma_rel, count):
    stored, wanted = snapshots(count), (sigma_rel, CELLS)
    combination = combine(stored, wanted)
    assert combination.error == pytest.approx(errors(stored, combination.weights, wanted), rel=0.02)
    assert combination.weights.sum() == pytest.approx(1, abs=1e-9)


def test_no_other_weights_of_sum_1_come_closer():
    stored, wanted = snapshots(6), (0.15, CELLS)
    best = combine(stored, wanted).weights
    changes = np.random.default_rng(0).standard_normal((100, len(best)))
    changes -= changes.mean(axis=1, keepdims=True)
    for size in (1e-1, 1e-2, 1e-3):
        assert (errors(stored, best + size * changes, wanted) > errors(stored, best, wanted)).all()


@pytest.mark.parametrize("step", [CELLS, CELLS // 2])
def test_an_average_that_is_stored_is_taken_as_it_is(step):
    stored = snapshots(20)
    combination = combine(stored, (0.1, step))
    expected = [float(profile == (0.1, step)) for profile in stored]
    np.testing.assert_allclose(combination.weights, expected, atol=1e-9)
    assert combination.error < 1e-6 and combination.noise == pytest.approx(1)


def test_more_snapshots_come_closer():
    errors = [combine(snapshots(count), (0.15, CELLS)).error for count in (5, 10, 20, 40, 80)]
    assert all(later < earlier / 2 for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-3


def test_two_averages_come_closer_than_one():
    # As many stored ones: 40 snapshots of one, 20 of two.
    one, two = snapshots(40, sigmas=(0.1,)), snapshots(20)
    assert combine(two, (0.15, CELLS)).error < combine(one, (0.15, CELLS)).error


def test_hundreds_of_snapshots_of_a_long_training():
    # 400,000 steps, as the paper's runs; products over 30 orders of magnitude.
    stored = [(sigma, 2500 * (k + 1)) for k in range(160) for sigma in (0.05, 0.1)]
    for sigma_rel, most in ((0.03, 1e-3), (0.07, 5e-5), (0.15, 1e-4), (0.2, 4e-4)):
        combination = combine(stored, (sigma_rel, 400_000))
        assert combination.error < most and combination.weights.sum() == pytest.approx(1, abs=1e-9)
