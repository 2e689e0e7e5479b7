"""Precision and recall compared with loops over all pairs, scikit-learn, torch-fidelity and sets with known values."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.precision_recall import precision_recall

GENERATOR = torch.Generator().manual_seed(0)


def normal(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=GENERATOR)


def measure(samples: Tensor, reference: Tensor, **options) -> dict[str, float]:
    sets = {
        "samples": Features("samples", {"pooled": samples}),
        "reference": Features("reference", {"pooled": reference}),
    }
    return precision_recall(**sets, **options)


def by_loops(samples: Tensor, reference: Tensor, k: int = 3) -> dict[str, float]:
    """Reference in float64, with the explicit difference of every pair."""
    a, b = samples.double().numpy(), reference.double().numpy()

    def radii(x):
        return [sorted(np.sum((x[i] - x[j]) ** 2) for j in range(len(x)) if j != i)[k - 1] for i in range(len(x))]

    def covered(points, centres, of_centres):
        inside = [any(np.sum((p - c) ** 2) <= r for c, r in zip(centres, of_centres, strict=True)) for p in points]
        return sum(inside) / len(inside)

    return {"precision": covered(a, b, radii(b)), "recall": covered(b, a, radii(a))}


POINTS = normal(60, 4)
SETS = {
    "two normals": (normal(60, 4), 1.3 * normal(45, 4)),
    "far from the origin": (normal(60, 4) + 1e4, 1.3 * normal(45, 4) + 1e4),
    "equal": (POINTS, POINTS.clone()),
    "every sample four times": (POINTS[:30].repeat(4, 1), POINTS),
    "one sample alone": (POINTS[:1].repeat(40, 1), POINTS),
    "one point alone": (POINTS[:1].repeat(40, 1), POINTS[:1].repeat(30, 1)),
    "closer than float32 tells from products": (POINTS[:1] + 3 + 1e-4 * normal(50, 4), POINTS),
    "on a lattice, where distances tie": tuple(
        torch.randint(0, 3, (n, 4), generator=GENERATOR).float() for n in (70, 60)
    ),
    "collapsed far from the reference": (100 + 1e-4 * normal(60, 4), torch.cat([POINTS, 100 + 1e-4 * normal(30, 4)])),
    "an outlier": (torch.cat([normal(50, 4), 1e6 * normal(1, 4)]), normal(50, 4)),
}


@pytest.mark.parametrize("block_size", [17, 2048])
@pytest.mark.parametrize("name", SETS)
def test_every_pair_is_judged_as_by_float64(name, block_size):
    assert measure(*SETS[name], block_size=block_size) == by_loops(*SETS[name])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_any_number_of_neighbours_counts_without_the_image_itself(k):
    assert measure(*SETS["two normals"], k=k) == by_loops(*SETS["two normals"], k=k)


def test_wide_features_are_judged_as_scikit_learn_does():
    samples, reference = normal(300, 512).abs(), 1.01 * normal(200, 512).abs()

    def radii(x):
        return NearestNeighbors(n_neighbors=4).fit(x).kneighbors(x)[0][:, 3]  # itself is the first

    def distances(x, y):
        return NearestNeighbors(n_neighbors=len(y)).fit(y).kneighbors_graph(x, mode="distance").toarray()

    a, b = samples.double().numpy(), reference.double().numpy()
    between = distances(a, b)
    expected = {"precision": (between <= radii(b)).any(axis=1).mean()}
    expected["recall"] = (between <= radii(a)[:, None]).any(axis=0).mean()
    assert 0.05 < expected["recall"] < expected["precision"] < 0.95  # so that the comparison means something
    assert measure(samples, reference, block_size=64) == pytest.approx(expected, abs=1e-12)


def test_the_numbers_are_torch_fidelitys():
    samples, reference = SETS["two normals"]
    theirs = prc_features_to_metric(samples, reference, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    assert measure(samples, reference) == pytest.approx({name: theirs[name] for name in ("precision", "recall")})


def test_equal_sets_have_both_and_disjoint_ones_neither():
    assert measure(POINTS, POINTS.clone()) == {"precision": 1.0, "recall": 1.0}
    assert measure(POINTS, POINTS + 100) == {"precision": 0.0, "recall": 0.0}


def test_half_the_modes_are_half_the_recall_and_half_of_the_samples_astray_half_the_precision():
    modes = torch.cat([POINTS, POINTS + 100])
    assert measure(POINTS, modes) == {"precision": 1.0, "recall": 0.5}
    assert measure(modes, POINTS) == {"precision": 0.5, "recall": 1.0}


def test_swapped_sets_are_refused():
    samples, reference = Features("samples", {"pooled": POINTS}), Features("reference", {"pooled": POINTS})
    with pytest.raises(ValueError, match="swapped"):
        precision_recall(samples=reference, reference=samples)


def test_too_few_images_for_the_neighbour_are_refused():
    assert measure(POINTS[:4], POINTS[:4]) == {"precision": 1.0, "recall": 1.0}
    with pytest.raises(ValueError, match="samples: only 3 images, but this metric needs at least 4"):
        measure(POINTS[:3], POINTS)
    with pytest.raises(ValueError, match="reference: only 3 images, but this metric needs at least 4"):
        measure(POINTS, POINTS[:3])
    with pytest.raises(ValueError, match="k = 0: must be at least 1"):
        measure(POINTS, POINTS, k=0)
