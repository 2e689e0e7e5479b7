"""Classifier-free guidance against the null of label and representations together."""

import json

import pytest
import torch

from redi.core.channels import Channels
from redi.guidance import Condition, guided, total_weights, training_advice
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance

CHANNELS = Channels(image=2, dino=3, clip=1)
NULL = 3
JOINT = "label+representations"


def model(x, t, y):
    return x + x.mean(dim=1, keepdim=True) + (t + y)[:, None, None, None]


def test_the_joint_null_sees_neither_label_nor_representations():
    x = torch.randn(2, CHANNELS.total, 2, 2, dtype=torch.float64, generator=torch.manual_seed(0))
    y, blind = torch.tensor([0, 2]), x.clone()
    blind[:, 2:] = 0
    full, null = model(x, torch.full((2,), 0.3), y), model(blind, torch.full((2,), 0.3), torch.full((2,), NULL))
    expected = torch.cat([(null + 1.8 * (full - null))[:, :2], full[:, 2:]], dim=1)
    prediction = guided(model, [ClassifierFree(1.8, null=JOINT)], CHANNELS, y, NULL, lambda t: t)(x, 0.3)
    torch.testing.assert_close(prediction, expected)


def test_two_rules_guide_each_group_against_its_own_null():
    rules = [ClassifierFree(1.8, null=JOINT), ClassifierFree(1.5, groups=("dino",))]
    weights = total_weights(rules, CHANNELS, 0.5)
    assert weights[Condition(label=False, without=frozenset({"dino", "clip"}))]["image"] == pytest.approx(-0.8)
    assert weights[Condition(label=False)] == {"image": 0.0, "dino": -0.5, "clip": 0.0}


def test_the_joint_null_is_recorded_and_the_old_record_stays_as_it_was():
    assert json.loads(json.dumps(ClassifierFree(2.0).provenance())) == {
        "name": "ClassifierFree", "scale": 2.0, "groups": ["image"], "interval": [0.0, 1.0],
    }  # fmt: skip
    assert ClassifierFree(2.0, null=JOINT).provenance()["null"] == JOINT


@pytest.mark.parametrize("null", ["representations", None, True])
def test_another_null_is_refused(null):
    with pytest.raises(ValueError, match=f"^ClassifierFree.null = {null!r}: must be 'label' or "):
        ClassifierFree(null=null)


def test_a_model_without_representations_is_refused():
    with pytest.raises(ValueError, match="^ClassifierFree.null = .* needs a representation.* set it to 'label'"):
        ClassifierFree(null=JOINT).check(Channels(image=4), NULL)
    with pytest.raises(ValueError, match="needs labels"):
        ClassifierFree(null=JOINT).check(CHANNELS, num_classes=1)


@pytest.mark.parametrize(
    ("trained_with", "advice"),
    [
        ((0.1, 0.0), "was not trained, because JointObjective.joint_dropout = 0"),
        ((0.0, 0.2), "was not trained"),
        ((0.1, 0.2), "trained on 2 % of the samples only"),
        ((0.0, 0.0, 0.1), "^$"),
    ],
)
def test_training_without_the_joint_null_is_warned_of(trained_with, advice):
    warning = ClassifierFree(null=JOINT).check_training(*trained_with)
    assert (warning == "") if advice == "^$" else advice in warning


def test_a_representation_guided_by_its_own_absence_is_warned_of():
    advice = ClassifierFree({"image": 1.8, "dino": 1.8}, null=JOINT).check_training(0.0, 0.0, 0.1)
    assert "guides dino" in advice and "another rule with null = 'label'" in advice


def test_the_joint_coin_alone_trains_neither_null_by_itself():
    assert "null label" in ClassifierFree().check_training(0.0, 0.0, 0.1)
    assert "without the representation" in RepresentationGuidance().check_training(0.0, 0.0, 0.1)


def test_a_rule_of_version_0_1_hears_of_two_dropouts():
    class Older(ClassifierFree):
        def check_training(self, label_dropout, representation_dropout):
            return f"{label_dropout} {representation_dropout}"

    rules = [Older(), ClassifierFree(), ClassifierFree(null=JOINT)]
    advice = training_advice(rules, (0.25, 0.5, 0.0))
    assert advice[0] == "0.25 0.5" and len(advice) == 2 and "12 %" in advice[1]
    assert training_advice(rules[1:], (0.25, 0.0, 0.125)) == []
