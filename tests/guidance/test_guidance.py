"""Guidance on a tiny network, against the formulas of the paper written out."""

import json

import pytest
import torch
from torch import nn

import redi.guidance
from redi.core import config
from redi.core.channels import Channels, Vector
from redi.core.configurables import import_all
from redi.guidance import EVERYTHING, Condition, guidance_rules, total_weights
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=2, dino=3, clip=1)
NUM_CLASSES = 3
T = 0.3


def guided(model, rules, channels, y, null_label, model_time=lambda t: t):
    return redi.guidance.guided(model, rules, channels, y, null_label, model_time)


every_rule = pytest.mark.parametrize("name", guidance_rules)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = DiffusionTransformer(
        channels=CHANNELS, grid=(4, 4), num_classes=NUM_CLASSES, width=16, depth=1, num_heads=2, patch_size=2
    )
    for parameter in network.parameters():  # the initial weights predict 0 for every input
        nn.init.normal_(parameter, std=0.3)
    return network.double().requires_grad_(False)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, CHANNELS.total, 4, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 0])


def evaluate(model, x, y):
    return model(x, x.new_full((len(x),), T), y)


def without(x, *names):
    x = x.clone()
    for name in names:
        x[:, CHANNELS.slice(name)] = 0
    return x


def null(y):
    return torch.full_like(y, NUM_CLASSES)


class Counted:
    def __init__(self, model):
        self.model, self.batch_sizes = model, []

    def __call__(self, x, t, y):
        self.batch_sizes.append(len(x))
        return self.model(x, t, y)


def assert_same(prediction, expected):
    """Equal up to float64 rounding, which depends on the order of summation and the batch size."""
    torch.testing.assert_close(prediction, expected, rtol=1e-10, atol=1e-10)


@every_rule
@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_weight_offsets_sum_to_zero_in_each_group(name, t):
    offsets = guidance_rules[name]().weight_offsets(CHANNELS, t)
    for group in CHANNELS:
        assert sum(weights.get(group, 0.0) for weights in offsets.values()) == pytest.approx(0, abs=1e-12)


@every_rule
def test_scale_one_is_the_model_and_costs_one_evaluation(name, model, state):
    x, y = state
    counted = Counted(model)
    prediction = guided(counted, [guidance_rules[name](scale=1.0)], CHANNELS, y, NUM_CLASSES)(x, T)
    assert torch.equal(prediction, evaluate(model, x, y))
    assert counted.batch_sizes == [len(x)]


@every_rule
def test_a_rule_s_provenance_is_json(name):
    provenance = guidance_rules[name]().provenance()
    assert json.loads(json.dumps(provenance))["name"] == name
    assert "scale" in provenance


@every_rule
def test_a_rule_accepts_a_conditional_model_with_representations(name):
    guidance_rules[name]().check(CHANNELS, NUM_CLASSES)


@every_rule
def test_unknown_groups_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.groups names .*picture.*image, dino, clip"):
        guidance_rules[name](groups=("picture",)).check(CHANNELS, NUM_CLASSES)


def test_no_rules_are_the_model(model, state):
    x, y = state
    assert torch.equal(guided(model, [], CHANNELS, y, NUM_CLASSES)(x, T), evaluate(model, x, y))


def test_classifier_free_guidance_extrapolates_the_image_and_leaves_the_rest(model, state):
    x, y = state
    guide = guided(model, [ClassifierFree(scale=2.4)], CHANNELS, y, NUM_CLASSES)
    full, unlabelled = evaluate(model, x, y), evaluate(model, x, null(y))
    expected = full.clone()
    expected[:, :2] = unlabelled[:, :2] + 2.4 * (full - unlabelled)[:, :2]
    assert_same(guide(x, T), expected)


def test_classifier_free_guidance_extrapolates_all_groups_that_are_bound(model, state):
    x, y = state
    guide = guided(model, [ClassifierFree(scale=2.4, groups=tuple(CHANNELS))], CHANNELS, y, NUM_CLASSES)
    full, unlabelled = evaluate(model, x, y), evaluate(model, x, null(y))
    assert_same(guide(x, T), unlabelled + 2.4 * (full - unlabelled))


def test_classifier_free_guidance_at_scale_zero_is_the_unlabelled_image(model, state):
    x, y = state
    prediction = guided(model, [ClassifierFree(scale=0.0)], CHANNELS, y, NUM_CLASSES)(x, T)
    assert_same(prediction[:, :2], evaluate(model, x, null(y))[:, :2])


def test_representation_guidance_is_equation_12_on_the_image_and_leaves_the_rest(model, state):
    x, y = state
    guide = guided(model, [RepresentationGuidance(scale=1.5)], CHANNELS, y, NUM_CLASSES)
    full, blind = evaluate(model, x, y), evaluate(model, without(x, "dino", "clip"), y)
    expected = full.clone()
    expected[:, :2] = blind[:, :2] + 1.5 * (full - blind)[:, :2]
    assert_same(guide(x, T), expected)


def test_representation_guidance_can_leave_out_one_representation(model, state):
    x, y = state
    guide = guided(model, [RepresentationGuidance(scale=1.5, without=("clip",))], CHANNELS, y, NUM_CLASSES)
    full, blind = evaluate(model, x, y), evaluate(model, without(x, "clip"), y)
    assert_same(guide(x, T)[:, :2], (blind + 1.5 * (full - blind))[:, :2])


def test_rules_add_their_deviations_from_the_plain_prediction(model, state):
    x, y = state
    rules = [ClassifierFree(scale=2.4), RepresentationGuidance(scale=1.5)]
    full, unlabelled = evaluate(model, x, y), evaluate(model, x, null(y))
    blind = evaluate(model, without(x, "dino", "clip"), y)
    expected = full + (2.4 - 1) * (full - unlabelled) + (1.5 - 1) * (full - blind)
    expected[:, 2:] = full[:, 2:]
    assert_same(guided(model, rules, CHANNELS, y, NUM_CLASSES)(x, T), expected)


def test_the_order_of_rules_does_not_matter(model, state):
    x, y = state
    rules = [ClassifierFree(scale=2.4), RepresentationGuidance(scale=1.5)]
    forwards = guided(model, rules, CHANNELS, y, NUM_CLASSES)(x, T)
    assert_same(guided(model, rules[::-1], CHANNELS, y, NUM_CLASSES)(x, T), forwards)


def test_all_conditions_are_evaluated_in_one_call_and_equal_ones_once(model, state):
    x, y = state
    rules = [ClassifierFree(scale=2.4), RepresentationGuidance(scale=1.5), ClassifierFree(scale=1.3, groups=("dino",))]
    counted = Counted(model)
    guided(counted, rules, CHANNELS, y, NUM_CLASSES)(x, T)
    assert counted.batch_sizes == [3 * len(x)]  # everything, the null label, no representations


def test_deviations_that_cancel_are_not_evaluated(model, state):
    x, y = state
    counted = Counted(model)
    guided(counted, [ClassifierFree(scale=1.5), ClassifierFree(scale=0.5)], CHANNELS, y, NUM_CLASSES)(x, T)
    assert counted.batch_sizes == [len(x)]


def test_a_condition_whose_weights_are_all_zero_is_not_evaluated():
    channels = Channels(image=2)
    assert list(total_weights([ClassifierFree(scale=0.0)], channels, T)) == [Condition(label=False)]


def test_total_weights_are_one_in_each_group():
    rules = [ClassifierFree(scale=2.4, groups=("image", "clip")), RepresentationGuidance(scale=1.1)]
    weights = total_weights(rules, CHANNELS, T)
    assert {group: sum(w[group] for w in weights.values()) for group in CHANNELS} == pytest.approx(
        dict.fromkeys(CHANNELS, 1.0)
    )
    assert weights[EVERYTHING] == pytest.approx({"image": 2.5, "dino": 1.0, "clip": 2.4})


def test_guidance_does_not_change_its_input(model, state):
    x, y = state
    before = x.clone()
    guided(model, [RepresentationGuidance()], CHANNELS, y, NUM_CLASSES)(x, T)
    assert torch.equal(x, before)


def test_classifier_free_guidance_of_an_unconditional_model_is_refused():
    with pytest.raises(ValueError, match="num_classes = 1.*RepresentationGuidance"):
        ClassifierFree().check(CHANNELS, num_classes=1)


def test_representation_guidance_of_an_unconditional_model_is_accepted():
    RepresentationGuidance().check(CHANNELS, num_classes=1)


def test_representation_guidance_without_representations_is_refused():
    with pytest.raises(ValueError, match="needs a representation"):
        RepresentationGuidance().check(Channels(image=4), NUM_CLASSES)


@pytest.mark.parametrize("names", [("image",), ("siglip",)])
def test_only_representations_can_be_left_out(names):
    with pytest.raises(ValueError, match="without names .* must be among dino, clip"):
        RepresentationGuidance(without=names).check(CHANNELS, NUM_CLASSES)


def test_leaving_out_nothing_is_refused():
    with pytest.raises(ValueError, match="without"):
        RepresentationGuidance(without=()).check(CHANNELS, NUM_CLASSES)


def with_variance(model):
    """The model with a second output for the channels of the image, after the first C channels."""
    return lambda x, t, y: torch.cat([model(x, t, y), 3 * model(x, t, y)[:, :2]], dim=1)


def test_a_learned_variance_is_that_of_the_unguided_prediction(model, state):
    x, y = state
    guided_prediction = guided(with_variance(model), [ClassifierFree(scale=3.0)], CHANNELS, y, NUM_CLASSES)(x, T)
    plain = guided(model, [ClassifierFree(scale=3.0)], CHANNELS, y, NUM_CLASSES)(x, T)
    torch.testing.assert_close(guided_prediction[:, : CHANNELS.total], plain)
    torch.testing.assert_close(guided_prediction[:, CHANNELS.total :], 3 * evaluate(model, x, y)[:, :2])


def test_the_network_is_told_the_time_of_the_process(state):
    x, y = state
    asked = []

    def record(x, t, y):
        asked.append(t)
        return torch.zeros_like(x)

    guided(record, [ClassifierFree(scale=2.0)], CHANNELS, y, NUM_CLASSES, model_time=lambda t: 1000 * (1 - t))(x, T)
    torch.testing.assert_close(asked[0], torch.full((10,), 700.0, dtype=torch.float64))


@pytest.mark.parametrize("rule", [ClassifierFree, RepresentationGuidance])
def test_outside_its_interval_a_rule_is_the_model_and_costs_one_evaluation(rule, model, state):
    x, y = state
    asked = []

    def counted(*inputs):
        asked.append(len(inputs[0]))
        return model(*inputs)

    rules = [rule(scale=3.0, interval=(0.25, 0.5))]
    denoise = redi.guidance.guided(counted, rules, model.channels, y, model.null_label, lambda t: t)
    for t, inside in ((0.0, False), (0.25, True), (0.4, True), (0.5, True), (0.51, False), (1.0, False)):
        prediction, plain = denoise(x, t), model(x, torch.full((len(x),), t), y)
        assert asked.pop() == len(x) * (2 if inside else 1)
        assert torch.equal(prediction, plain) is not inside


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.5), 0.5, (0.1,), "ab", None])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match="^RepresentationGuidance.interval = .*: must be two times"):
        RepresentationGuidance(interval=interval)


def test_a_rule_written_for_version_0_1_still_works():
    class Older(ClassifierFree):
        def deviations(self, channels, t):
            return super().deviations(channels, 0.5 * t)

    rule = Older(scale=3.0, interval=(0.0, 0.25))
    assert rule.weight_offsets(CHANNELS, 0.4) == ClassifierFree(scale=3.0).weight_offsets(CHANNELS, 0.4)
    assert rule.weight_offsets(CHANNELS, 0.6) == {}


def test_the_first_channels_of_a_group_are_guided_alone(model, state):
    x, y = state
    full, unlabelled = evaluate(model, x, y), evaluate(model, x, null(y))
    expected = full.clone()
    expected[:, :1] += 1.4 * (full - unlabelled)[:, :1]  # of 2 channels of the image
    rule = ClassifierFree(scale=2.4, channels={"image": 1})
    assert_same(guided(model, [rule], CHANNELS, y, NUM_CLASSES)(x, T), expected)
    expected[:, 2:4] += 0.5 * (full - unlabelled)[:, 2:4]  # of 3 channels of dino
    expected[:, 5:] += 3.0 * (full - unlabelled)[:, 5:]
    rule = ClassifierFree({"image": 2.4, "dino": 1.5, "clip": 4.0}, channels={"image": 1, "dino": 2})
    assert_same(guided(model, [rule], CHANNELS, y, NUM_CLASSES)(x, T), expected)


def test_rules_on_different_channels_of_one_group_add_up(model, state):
    x, y = state
    full, unlabelled = evaluate(model, x, y), evaluate(model, x, null(y))
    blind = evaluate(model, without(x, "dino", "clip"), y)
    expected = full.clone()
    for n, offset in ((2, 0.4 * (full - unlabelled)), (1, full - unlabelled), (3, 0.7 * (full - blind))):
        expected[:, 2 : 2 + n] += offset[:, 2 : 2 + n]
    rules = [
        ClassifierFree({"dino": 1.4}, channels={"dino": 2}), ClassifierFree({"dino": 2.0}, channels={"dino": 1}),
        RepresentationGuidance({"dino": 1.7}),
    ]  # fmt: skip
    assert_same(guided(model, rules, CHANNELS, y, NUM_CLASSES)(x, T), expected)


def test_channels_that_are_not_guided_cost_nothing(model, state):
    x, y = state
    for rule in (
        ClassifierFree(1.0, channels={"image": 1}), ClassifierFree(2.0, channels={"image": 1}, interval=(0.5, 1)),
    ):  # fmt: skip
        counted = Counted(model)
        prediction = guided(counted, [rule], CHANNELS, y, NUM_CLASSES)(x, T)
        assert counted.batch_sizes == [len(x)] and torch.equal(prediction, evaluate(model, x, y))
    all_of_it = total_weights([ClassifierFree(2.0, channels={"image": 2})], CHANNELS, T)
    assert all_of_it == total_weights([ClassifierFree(2.0)], CHANNELS, T)
    # Scale 0 of a part needs the label for the rest of the group.
    assert len(total_weights([ClassifierFree(0.0, channels={"image": 1})], Channels(image=2), T)) == 2


@pytest.mark.parametrize("value", [3, {"image": 0}, {"image": 1.5}, {"image": True}, ["image"]])
def test_numbers_of_guided_channels_are_checked(value):
    with pytest.raises(ValueError, match="ClassifierFree.channels = .*: must be {group: number of channels}"):
        ClassifierFree(channels=value)


def test_guided_channels_are_those_of_a_guided_map():
    with pytest.raises(ValueError, match="ClassifierFree.channels names .'dino'.: must be among image"):
        ClassifierFree(channels={"dino": 1})
    vectors = Channels(image=4, dino_class=Vector(5, channels=1))
    with pytest.raises(ValueError, match="channels guides 5 channels of image: must be at most .*image=4"):
        ClassifierFree(channels={"image": 5}).check(vectors, NUM_CLASSES)
    with pytest.raises(ValueError, match="channels names .'dino_class'.: must be among image"):
        ClassifierFree({"dino_class": 2.0}, channels={"dino_class": 1}).check(vectors, NUM_CLASSES)
    with pytest.raises(ValueError, match="scale names .'picture'.: must be among image, dino_class"):
        ClassifierFree({"picture": 2.0}, channels={"picture": 1}).check(vectors, NUM_CLASSES)


def test_guided_channels_are_bound_by_gin_and_recorded():
    bindings = ["ClassifierFree.channels = {'image': 3}", "generate.guidance = [@guidance.ClassifierFree()]"]
    with config.isolated():
        import_all()
        config.parse([], bindings)
        (rule,) = config.bound("generate.guidance")
    assert rule.provenance()["channels"] == {"image": 3} and "channels" not in ClassifierFree().provenance()


# Vectors


def predict(x, t, y):
    """A network that depends on the label, and predicts values for padding too."""
    return x + (1 + y.to(x.dtype))[:, None, None, None]


def test_a_vector_has_a_scale_of_its_own(state):
    (x, y), channels = state, Channels(image=2, dino=3, token=Vector(10, channels=1))
    found = guided(predict, [ClassifierFree({"token": 3.0})], channels, y, NUM_CLASSES)(x, T)
    conditional, unconditional = predict(x, T, y), predict(x, T, null(y))
    assert torch.equal(found[:, :5], conditional[:, :5])
    expected = (3 * conditional - 2 * unconditional)[:, 5].flatten(1)[:, :10]
    torch.testing.assert_close(found[:, 5].flatten(1)[:, :10], expected)
    assert not found[:, 5].flatten(1)[:, 10:].any()


@pytest.mark.parametrize("rules", [[], [ClassifierFree(2.0)]], ids=["unguided", "guided"])
def test_a_prediction_for_padding_is_removed_and_learned_variances_are_kept(state, rules):
    (x, y), channels = state, Channels(image=5, token=Vector(10, channels=1))

    def with_variances(x, t, y):
        return torch.cat([predict(x, t, y), torch.ones_like(x)], dim=1)

    found = guided(with_variances, rules, channels, y, NUM_CLASSES)(x, T)
    assert not found[:, 5].flatten(1)[:, 10:].any() and found[:, 5].flatten(1)[:, :10].all()
    assert torch.equal(found[:, 6:], torch.ones_like(x))
