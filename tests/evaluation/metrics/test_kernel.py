"""The kernel distance compared with loops in float64, clean-fid, torch-fidelity, and expected values."""

import cleanfid.fid
import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import kid_features_to_metric

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.kernel import kernel_distance


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def measure(samples: Tensor, reference: Tensor, **options) -> float:
    sets = {
        "samples": Features("samples", {"pooled": samples}),
        "reference": Features("reference", {"pooled": reference}),
    }
    return kernel_distance(**sets, **options)["kernel_distance"]


def by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD of two sets of equal size, term by term."""

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return sum((x[i] @ y[j] / len(x[i]) + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_sets_of_one_size_give_the_published_formula():
    a, b = normal(12, 5, 0), normal(12, 5, 1) + 0.5
    expected = by_loops(a.double().numpy(), b.double().numpy())
    # Every subset is then the whole set, in another order.
    assert measure(a, b) == pytest.approx(expected, rel=1e-12)


def test_subsets_are_those_of_clean_fid_with_this_seed():
    a, b = normal(60, 16, 0), normal(50, 16, 1) + 0.3
    state = np.random.get_state()
    np.random.seed(7)
    expected = cleanfid.fid.kernel_distance(b.double().numpy(), a.double().numpy(), num_subsets=5, max_subset_size=20)
    np.random.set_state(state)
    assert measure(a, b, num_subsets=5, max_subset_size=20, seed=7) == pytest.approx(expected, rel=1e-12)
    assert measure(a, b, num_subsets=5, max_subset_size=20, seed=8) != expected


def test_the_distance_is_torch_fidelitys():
    a, b = normal(40, 16, 0), normal(40, 16, 1) + 0.3
    theirs = kid_features_to_metric(a.double(), b.double(), kid_subsets=1, kid_subset_size=40, verbose=False)
    assert measure(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_two_normals_have_the_expected_distance():
    width, shift = 8, 0.5
    m2 = width * shift**2  # |m|^2 of N(m, I) against N(0, I)

    def kernel_mean(mm, m1, m2):
        # E (x.y/P + 1)^3 for x of N(m1, I), y of N(m2, I), from |m1|^2 = m1, |m2|^2 = m2 and m1.m2 = mm:
        # x.y given y is normal with mean m1.y and variance |y|^2.
        p = width
        first = mm
        second = (m1 + p) + mm**2 + m2  # E (m1.y)^2 + E |y|^2, with E (m1.y)^2 = |m1|^2 + (m1.m2)^2
        third = (3 * mm * m1 + mm**3) + 3 * (mm * (m2 + p) + 2 * mm)  # E (m1.y)^3 + 3 E (m1.y) |y|^2
        return third / p**3 + 3 * second / p**2 + 3 * first / p + 1

    expected = kernel_mean(0, 0, 0) + kernel_mean(m2, m2, m2) - 2 * kernel_mean(0, 0, m2)
    found = measure(normal(8000, width, 0), normal(8000, width, 1) + shift, num_subsets=20)
    # Over ten pairs of seeds its standard deviation is 4 %, and the furthest is 9 % off.
    assert found == pytest.approx(expected, rel=0.15)


def test_the_sign_is_kept_where_the_distributions_are_equal():
    found = [measure(normal(50, 8, 2 * seed), normal(50, 8, 2 * seed + 1)) for seed in range(10)]
    assert min(found) < 0 < max(found)


def test_single_precision_is_not_what_decides():
    a, b = 30 + normal(200, 16, 0), 30 + normal(200, 16, 1)  # kernels of about 1e9, which differ by chance alone
    doubled = measure(a.double(), b.double())
    assert measure(a, b) == doubled
    with np.errstate(all="ignore"):
        single = cleanfid.fid.kernel_distance(b.numpy(), a.numpy(), num_subsets=1)
    assert single != pytest.approx(doubled, rel=1e-6)  # clean-fid alone loses it


def test_numpys_generator_is_left_as_it_was():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    first = measure(normal(30, 4, 0), normal(20, 4, 1))
    assert np.random.rand() == expected
    assert measure(normal(30, 4, 0), normal(20, 4, 1)) == first


def test_swapped_and_single_images_are_refused():
    samples, reference = (
        Features("samples", {"pooled": normal(5, 4, 0)}),
        Features("reference", {"pooled": normal(5, 4, 1)}),
    )
    with pytest.raises(ValueError, match="swapped"):
        kernel_distance(samples=reference, reference=samples)
    with pytest.raises(ValueError, match="samples: only 1 images, but this metric needs at least 2"):
        measure(normal(1, 4, 0), normal(5, 4, 1))
