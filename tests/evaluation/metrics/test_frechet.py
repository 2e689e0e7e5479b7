"""The Fréchet distance compared with closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
import torch

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.frechet import Gaussian, finite_sample_error, frechet_distance


def normal(mean, covariance):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def features(seed, count=200, width=6):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def by_scipy(a, b):
    """The formula of the published FID code: the square root of the asymmetric product."""
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


# Of features


def of_role(role, tensor, name="pooled"):
    return Features(role, {name: tensor})


def test_features_give_the_distance_of_their_gaussians():
    a, b = features(0).float(), features(1).float()
    expected = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert frechet_distance(of_role("samples", a), of_role("reference", b)) == expected
    assert frechet_distance(of_role("samples", a), Gaussian.of(b)) == expected
    spatial = of_role("samples", a, "spatial"), of_role("reference", b, "spatial")
    assert frechet_distance(*spatial, name="spatial") == expected


def test_swapped_sets_and_other_widths_are_refused():
    samples, reference = of_role("samples", features(0)), of_role("reference", features(1))
    with pytest.raises(ValueError, match="swapped"):
        frechet_distance(samples=reference, reference=samples)
    with pytest.raises(ValueError, match="swapped"):
        finite_sample_error(samples=reference, reference=samples)
    wider = of_role("reference", features(1, width=7))
    for function in (frechet_distance, finite_sample_error):
        with pytest.raises(ValueError, match="samples have 6 features, but the reference has 7"):
            function(samples, wider)


def test_values_that_are_not_finite_are_refused():
    broken = features(0)
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match="image 3, feature 1"):
        frechet_distance(of_role("samples", broken), of_role("reference", features(1)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Gaussian.of(broken)


def test_moments_of_many_chunks_are_numpy_s(monkeypatch):
    monkeypatch.setattr("redi.models.reducers.moments.CHUNK", 7)
    test_mean_and_covariance_are_numpy_s()
    test_moments_are_taken_in_double_precision()


@pytest.mark.parametrize("counts", [(20, 20), (20, 200)])
def test_fewer_images_than_features_have_the_distance_of_the_roots(counts):
    # In 64 dimensions: A B has rank 19 at most. Its eigenvalues, of which tr (A B)^1/2 is the sum of roots, are those
    # of a matrix of that size.
    a, b = (features(seed, count=count, width=64) for seed, count in enumerate(counts))
    x, y = ((z - z.mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    cross = np.linalg.svd((x @ y.T).numpy(), compute_uv=False).sum()
    expected = float((a.mean(dim=0) - b.mean(dim=0)).square().sum() + x.square().sum() + y.square().sum()) - 2 * cross
    assert frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-6)


def test_a_feature_that_never_varies_changes_nothing():
    a, b = features(0), features(1)
    dead = [torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1) for x in (a, b)]
    expected = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert frechet_distance(*map(Gaussian.of, dead)) == pytest.approx(expected, rel=1e-9)


# The error of a finite number


def error_by_definition(a, b, num_groups=10, seed=0):
    """Compute the Gaussian of every subset from its features."""
    against = Gaussian.of(b)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    parts = list(order.tensor_split(num_groups))

    def mean_distance(subsets):
        return np.mean([frechet_distance(Gaussian.of(a[torch.cat(subset)]), against) for subset in subsets])

    left = [parts[:i] + parts[i + 1 :] for i in range(num_groups)]
    each = [mean_distance([subset]) for subset in left]
    error = np.sqrt((num_groups - 1) / num_groups * np.sum((each - np.mean(each)) ** 2))
    whole, half = mean_distance([parts]), mean_distance([parts[: num_groups // 2], parts[num_groups // 2 :]])
    x = 1 / len(a) * np.array([1, num_groups / (num_groups - 1), 2])
    (intercept, _), *_ = np.linalg.lstsq(np.stack([np.ones(3), x], axis=1), [whole, np.mean(each), half], rcond=None)
    return {"standard_error": error, "value_at_infinity": intercept, "bias": whole - intercept}


@pytest.mark.parametrize("num_groups", [4, 10])
def test_merged_moments_give_the_error_of_subsets_taken_afresh(num_groups):
    a, b = 5 + features(0, count=203), 5 + features(1)
    found = finite_sample_error(of_role("samples", a), of_role("reference", b), num_groups=num_groups)
    assert found == pytest.approx(error_by_definition(a, b, num_groups), rel=1e-6)
    assert finite_sample_error(a, Gaussian.of(b), num_groups=num_groups) == found


def test_the_standard_error_is_the_spread_over_draws_and_the_extrapolation_removes_the_bias():
    # N(0, 1.3 I) against N(0, I): the distance is P (1.3^1/2 - 1)^2.
    width, true = 16, 16 * (1.3**0.5 - 1) ** 2
    reference = Gaussian(torch.zeros(width).double(), torch.eye(width).double())
    generator = torch.Generator().manual_seed(0)
    draws = [1.3**0.5 * torch.randn(400, width, generator=generator) for _ in range(40)]
    distances = np.array([frechet_distance(Gaussian.of(x), reference) for x in draws])
    found = [finite_sample_error(x, reference) for x in draws]
    # The jackknife's estimate, and the standard deviation of 40 draws, are each known to about a tenth.
    assert np.mean([x["standard_error"] for x in found]) == pytest.approx(distances.std(ddof=1), rel=0.35)
    bias = distances.mean() - true
    assert bias > 0.1  # about P^2 / 4 N and more: far beyond the mean's own error
    assert abs(np.mean([x["value_at_infinity"] for x in found]) - true) < 0.15 * bias
    np.testing.assert_allclose([x["value_at_infinity"] + x["bias"] for x in found], distances, rtol=1e-6)


def test_order_does_not_matter_where_samples_lie_class_by_class():
    generator = torch.Generator().manual_seed(0)
    ordered = torch.randn(400, 4, generator=generator) + 3 * torch.arange(10.0).repeat_interleave(40)[:, None]
    mixed = ordered[torch.randperm(400, generator=generator)]
    reference = Gaussian.of(features(1, width=4))
    errors = [finite_sample_error(x, reference)["standard_error"] for x in (ordered, mixed)]
    assert 0.4 < errors[0] / errors[1] < 2.5  # groups of one class each would make it many times larger


def test_fewer_samples_than_features_are_warned_of_with_the_reason():
    few, many = features(0, count=30, width=40), features(1, count=100, width=40)
    warnings = finite_sample_error(few, Gaussian.of(many))["warnings"]
    assert len(warnings) == 1
    assert "30 samples are fewer than the 40 features" in warnings[0] and "biased upward" in warnings[0]
    (warning,) = finite_sample_error(many, Gaussian.of(few))["warnings"]
    assert "30 reference images" in warning
    assert "warnings" not in finite_sample_error(many, Gaussian.of(many))


def test_too_few_samples_for_groups_give_no_error_at_all():
    assert finite_sample_error(features(0, count=19), Gaussian.of(features(1))) == {}
    assert "standard_error" in finite_sample_error(features(0, count=20), Gaussian.of(features(1)))


@pytest.mark.parametrize("num_groups", [0, 1, 5])
def test_groups_that_make_no_halves_are_refused(num_groups):
    with pytest.raises(ValueError, match=f"num_groups = {num_groups}: must be even"):
        finite_sample_error(features(0), Gaussian.of(features(1)), num_groups=num_groups)
