"""The Fréchet distance against closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
import torch

from redi.evaluation.frechet import Gaussian, frechet_distance


def normal(mean, covariance):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def features(seed, count=200, width=6):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def by_scipy(a, b):
    """As in the published FID code: the square root of the unsymmetric product."""
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    difference = (a.mean - b.mean).numpy()
    return difference @ difference + np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * root)


def test_two_normals_in_one_dimension_have_the_known_distance():
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(normal([1.0], [[4.0]]), normal([-2.0], [[9.0]])) == pytest.approx(9 + 1)


def test_diagonal_covariances_add_up_over_dimensions():
    a, b = normal([0.0, 1.0], [[1.0, 0.0], [0.0, 4.0]]), normal([3.0, 1.0], [[16.0, 0.0], [0.0, 0.25]])
    assert frechet_distance(a, b) == pytest.approx(9 + (1 - 4) ** 2 + (2 - 0.5) ** 2)


def test_equal_sets_have_no_distance():
    gaussian = Gaussian.of(features(0))
    # The trace is about 70; the difference of equal numbers leaves rounding of float64.
    assert frechet_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-10)


def test_the_distance_is_symmetric():
    a, b = Gaussian.of(features(0)), Gaussian.of(features(1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_that_of_the_published_formula(seed):
    a, b = Gaussian.of(features(seed)), Gaussian.of(features(seed + 100) + 0.3)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)


def test_a_translation_adds_its_squared_length():
    x, shift = features(0), torch.arange(6.0).double()
    distance = frechet_distance(Gaussian.of(x), Gaussian.of(x + shift))
    # The square roots of the cancelling covariances leave about 1e-10 of the trace.
    assert distance == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_translating_both_changes_nothing():
    a, b = features(0), features(1)
    moved = frechet_distance(Gaussian.of(a + 5), Gaussian.of(b + 5))
    assert moved == pytest.approx(frechet_distance(Gaussian.of(a), Gaussian.of(b)), rel=1e-9)


def test_rotating_both_changes_nothing():
    rotation = torch.linalg.qr(features(7, count=6)).Q
    a, b = features(0), features(1)
    turned = frechet_distance(Gaussian.of(a @ rotation), Gaussian.of(b @ rotation))
    assert turned == pytest.approx(frechet_distance(Gaussian.of(a), Gaussian.of(b)), rel=1e-9)


def test_scaling_both_scales_the_distance_with_the_square():
    a, b = features(0), features(1)
    scaled = frechet_distance(Gaussian.of(3 * a), Gaussian.of(3 * b))
    assert scaled == pytest.approx(9 * frechet_distance(Gaussian.of(a), Gaussian.of(b)), rel=1e-9)


def test_singular_covariances_are_exact():
    # Two rank-one normals along orthogonal axes: nothing in common, so the traces add up.
    a, b = normal([0.0, 0.0], [[4.0, 0.0], [0.0, 0.0]]), normal([0.0, 0.0], [[0.0, 0.0], [0.0, 9.0]])
    assert frechet_distance(a, b) == pytest.approx(13)


def test_fewer_samples_than_features_have_no_distance_from_themselves():
    gaussian = Gaussian.of(features(0, count=4))
    assert frechet_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-7)  # roots of eigenvalues of 1e-16


def test_points_without_variance_are_as_far_apart_as_points():
    a, b = normal([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]), normal([3.0, 4.0], [[0.0, 0.0], [0.0, 0.0]])
    assert frechet_distance(a, b) == 25


def test_the_distance_is_never_negative():
    for seed in range(20):
        gaussian = Gaussian.of(1e4 + features(seed))
        assert frechet_distance(gaussian, gaussian) >= 0


def test_mean_and_covariance_are_numpy_s():
    x = features(3)
    gaussian = Gaussian.of(x)
    np.testing.assert_allclose(gaussian.mean, np.mean(x.numpy(), axis=0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_moments_are_taken_in_double_precision():
    x = (1000 + features(0)).float()
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(Gaussian.of(x).covariance, expected, rtol=1e-9)


def test_one_feature_is_enough():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]])  # means 1 and 5, variances 2 and 8
    assert frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(16 + 2)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (2, 3, 4)])
def test_too_few_or_shapeless_features_are_refused(shape):
    with pytest.raises(ValueError, match="N >= 2"):
        Gaussian.of(torch.zeros(shape))
