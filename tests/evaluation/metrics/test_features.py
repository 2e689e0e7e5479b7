"""Features have a role, and the self-test detects metrics that swap their two sets."""

import pytest
import torch

from redi.evaluation.metrics import self_test
from redi.evaluation.metrics.features import Features, both, rows
from redi.evaluation.metrics.self_test import check_direction


def features(role="samples", count=5, width=3) -> Features:
    return Features(role, {"pooled": torch.randn(count, width, generator=torch.Generator().manual_seed(0))})


def test_the_length_is_the_number_of_images():
    assert len(features(count=7)) == 7


def test_features_of_no_role_or_shape_are_refused():
    with pytest.raises(ValueError, match="role = 'real': must be 'samples' or 'reference'"):
        features("real")
    with pytest.raises(ValueError, match="Features.tensors = none"):
        Features("samples", {})
    with pytest.raises(ValueError, match=r"must have the shape \(N, P\)"):
        Features("samples", {"pooled": torch.zeros(2, 3, 4)})
    with pytest.raises(ValueError, match="have different numbers of images"):
        Features("samples", {"pooled": torch.zeros(2, 3), "logits": torch.zeros(3, 3)})


@pytest.mark.parametrize(("asked", "given"), [("samples", "reference"), ("reference", "samples")])
def test_features_of_the_other_role_are_refused(asked, given):
    with pytest.raises(ValueError, match=f"the argument {asked} got features of the {given}: .*swapped"):
        rows(features(given), asked)


def test_what_no_metric_can_use_is_refused():
    with pytest.raises(ValueError, match="the argument samples must be Features, got Tensor"):
        rows(torch.zeros(3, 3), "samples")
    with pytest.raises(ValueError, match="samples: no 'logits' features, only pooled"):
        rows(features(), "samples", "logits")
    with pytest.raises(ValueError, match="reference: only 5 images, but this metric needs at least 6"):
        rows(features("reference"), "reference", least=6)
    with pytest.raises(ValueError, match="samples have 3 features, but the reference has 4"):
        both(features(), features("reference", width=4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value):
    broken = features()
    broken.tensors["pooled"][3, 1] = value
    with pytest.raises(ValueError, match=rf"'pooled' of the samples holds {value} \(image 3, feature 1\)"):
        rows(broken, "samples")


def test_large_finite_values_are_no_reason_to_refuse():
    large = Features("samples", {"pooled": torch.full((4, 4), 3e38)})  # their sum overflows float32
    assert rows(large, "samples") is large.tensors["pooled"]


# The self-test


def test_the_self_test_passes():
    check_direction()


def test_the_self_test_notices_exchanged_sets(monkeypatch):
    def exchanged(*, samples, reference):
        right = self_test_precision_recall(samples=samples, reference=reference)
        return {"precision": right["recall"], "recall": right["precision"]}

    self_test_precision_recall = self_test.precision_recall
    monkeypatch.setattr(self_test, "precision_recall", exchanged)
    with pytest.raises(RuntimeError, match="'precision': 0.5, 'recall': 1.0.* swaps the two sets"):
        check_direction()


def test_the_self_test_notices_metrics_that_take_any_role(monkeypatch):
    monkeypatch.setattr(self_test, "inception_score", lambda *_, **__: (1.0, 0.0))
    with pytest.raises(RuntimeError, match="inception_score accepts the reference as samples"):
        check_direction()
