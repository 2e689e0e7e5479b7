"""The Inception Score compared with loops in float64, torch-fidelity, and logits with a known score."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from redi.evaluation.metrics.features import Features
from redi.evaluation.metrics.inception_score import inception_score


def logits(count: int = 40, classes: int = 7, scale: float = 2) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


def by_loops(given: np.ndarray) -> float:
    probabilities = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in given]
    marginal = [sum(row[j] for row in probabilities) / len(given) for j in range(len(given[0]))]
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True)) for row in probabilities]
    return math.exp(sum(divergences) / len(given))


def test_one_split_is_the_published_formula():
    assert inception_score(logits(), num_splits=1).mean == pytest.approx(by_loops(logits().double().numpy()), rel=1e-12)


def test_splits_in_the_given_order_are_those_of_adm_and_torch_fidelity():
    found = inception_score(logits(45), num_splits=4, seed=None)
    theirs = isc_features_to_metric(logits(45), splits=4, shuffle=False)
    assert found.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    # ADM: equal consecutive parts.
    parts = [by_loops(part.double().numpy()) for part in logits(40).split(10)]
    assert inception_score(logits(40), num_splits=4, seed=None).mean == pytest.approx(np.mean(parts), rel=1e-12)


def test_sure_and_equally_frequent_classes_score_their_number():
    assert inception_score(1e4 * torch.eye(10).repeat(10, 1), num_splits=1) == pytest.approx((10, 0))


def test_equal_answers_score_one():
    assert inception_score(logits(1).repeat(20, 1), num_splits=2) == pytest.approx((1, 0))


def test_samples_that_lie_class_by_class_score_as_shuffled_ones():
    by_class = 20 * torch.eye(10).repeat_interleave(100, dim=0)
    assert inception_score(by_class, num_splits=10, seed=None).mean == pytest.approx(1)  # every part is one class
    assert inception_score(by_class, num_splits=10).mean > 9  # ten classes, in finite parts
    assert inception_score(by_class) == inception_score(by_class)


def test_a_common_offset_of_the_logits_changes_nothing():
    moved = logits().double() + 1e3 * torch.arange(40.0)[:, None]
    assert inception_score(moved, num_splits=2) == pytest.approx(inception_score(logits(), num_splits=2), rel=1e-9)


def test_of_features_the_samples_logits_are_taken_and_the_references_refused():
    tensors = {"pooled": torch.zeros(40, 3), "logits": logits()}
    assert inception_score(Features("samples", tensors), 2) == inception_score(logits(), 2)
    with pytest.raises(ValueError, match="the argument samples got features of the reference"):
        inception_score(Features("reference", tensors))
    with pytest.raises(ValueError, match="samples: no 'logits' features"):
        inception_score(Features("samples", {"pooled": torch.zeros(40, 3)}))


@pytest.mark.parametrize("num_splits", [0, 5])
def test_more_splits_than_samples_are_refused(num_splits):
    with pytest.raises(ValueError, match=f"num_splits = {num_splits}: must be between 1 and the"):
        inception_score(logits(4), num_splits=num_splits)
