"""Guidance by other networks and sums of rules, against weighted sums written out."""

import pytest
import torch
from torch import nn

from redi.core.channels import Channels
from redi.guidance import Condition, Guidance, guided, networks_of, total_weights
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.contrast import Contrast
from redi.guidance.representation import RepresentationGuidance

CHANNELS = Channels(image=2, dino=3, clip=1)
NULL, T = 3, 0.3


class Weaker(Contrast):
    """Away from the prediction of a weaker network."""

    def __init__(self, scale=2.0, *, groups=None, interval=(0.0, 1.0), weak=None):
        super().__init__(scale, groups, interval)
        self.weak = weak

    def condition(self, channels):
        return Condition(network="weak")

    def networks(self):
        return {"weak": self.weak}


class Network:
    """A prediction that mixes all channels and depends on t and y; it counts samples per call."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.mix = torch.randn(CHANNELS.total, CHANNELS.total, generator=generator, dtype=torch.float64)
        self.batch_sizes = []

    def __call__(self, x, t, y):
        self.batch_sizes.append(len(x))
        return torch.einsum("dc,nchw->ndhw", self.mix, x).tanh() + (t + y)[:, None, None, None]


@pytest.fixture
def networks():
    return {"self": Network(0), "weak": Network(1)}


@pytest.fixture
def x():
    return torch.randn(5, CHANNELS.total, 2, 2, generator=torch.manual_seed(2), dtype=torch.float64)


Y = torch.tensor([0, 1, 2, 2, 0])


def predict(networks, rules, x, group_times=None):
    return guided(networks, rules, CHANNELS, Y, NULL, lambda t: t, group_times)(x, T)


def evaluate(network, x, y=Y):
    return network(x, x.new_full((len(x),), T), y)


def counts(networks):
    sizes = {name: network.batch_sizes for name, network in networks.items()}
    for network in networks.values():
        network.batch_sizes = []
    return sizes


def test_guidance_by_another_network_is_the_sum_written_out(networks, x):
    strong, weak = evaluate(networks["self"], x), evaluate(networks["weak"], x)
    expected = torch.cat([(weak + 1.7 * (strong - weak))[:, :5], strong[:, 5:]], dim=1)
    prediction = predict(networks, [Weaker(1.7, groups=("image", "dino"))], x)
    torch.testing.assert_close(prediction, expected, rtol=1e-12, atol=1e-12)


def test_each_network_is_called_once_with_its_own_conditions(networks, x):
    predict(networks, [ClassifierFree(2.0), Weaker(2.0), RepresentationGuidance(1.5)], x)
    assert counts(networks) == {"self": [3 * len(x)], "weak": [len(x)]}


def test_a_sum_of_rules_is_the_weighted_sum_written_out(networks, x):
    strong, weak = evaluate(networks["self"], x), evaluate(networks["weak"], x)
    null = evaluate(networks["self"], x, torch.full_like(Y, NULL))
    rules = [ClassifierFree({"image": 2.4, "dino": 1.5}), Weaker({"dino": 1.3, "clip": 0.5})]
    expected = torch.cat([
        (strong + 1.4 * (strong - null))[:, :2],
        (strong + 0.5 * (strong - null) + 0.3 * (strong - weak))[:, 2:5],
        (strong - 0.5 * (strong - weak))[:, 5:],
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(predict(networks, rules, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("others", [[], [ClassifierFree(2.4, groups=tuple(CHANNELS))]])
def test_scale_one_does_not_call_the_other_network(networks, x, others):
    alone = predict(networks, others, x)
    asked = counts(networks)
    assert torch.equal(predict(networks, [*others, Weaker(1.0, groups=tuple(CHANNELS))], x), alone)
    assert counts(networks) == asked and asked["weak"] == []


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.5, 4.0, {"image": 3.0, "clip": 0.5}])
@pytest.mark.parametrize("others", [[], [ClassifierFree(1.5), RepresentationGuidance(2.0)]])
def test_the_model_as_its_own_weak_network_guides_nothing(networks, x, scale, others):
    plain = predict(networks, others, x)
    prediction = predict(networks | {"weak": networks["self"]}, [*others, Weaker(scale)], x)
    torch.testing.assert_close(prediction, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [ClassifierFree, RepresentationGuidance, Weaker])
def test_rules_with_opposite_offsets_cancel_and_cost_nothing(networks, x, rule):
    rules = [rule({"image": 1.4, "dino": 3.0}), rule({"image": 0.6, "dino": -1.0})]  # 1.4 - 1 + 0.6 - 1 is about 1e-16
    assert torch.equal(predict(networks, rules, x), evaluate(networks["self"], x))
    assert counts(networks) == {"self": [len(x), len(x)], "weak": []}


def test_a_scale_of_zero_everywhere_leaves_the_weak_network_alone(networks, x):
    prediction = predict(networks, [Weaker(0.0, groups=tuple(CHANNELS))], x)
    assert counts(networks) == {"self": [], "weak": [len(x)]}
    torch.testing.assert_close(prediction, evaluate(networks["weak"], x))


def test_intervals_are_in_the_own_time_of_each_group(networks, x):
    rule = Weaker({"image": 2.0, "dino": 3.0}, interval={"image": (0.2, 1.0), "dino": (0.0, 0.8)})
    strong, weak = evaluate(networks["self"], x), evaluate(networks["weak"], x)
    counts(networks)
    for image, dino, calls in [(0.1, 0.7, 1), (0.2, 0.8, 1), (0.3, 0.9, 1), (0.1, 0.9, 0)]:
        prediction = predict(networks, [rule], x, lambda t, i=image, d=dino: {"image": i, "dino": d, "clip": t})
        scales = [2.0 if image >= 0.2 else 1.0, 3.0 if dino <= 0.8 else 1.0, 1.0]
        scales = torch.tensor(scales, dtype=x.dtype).repeat_interleave(torch.tensor([2, 3, 1]))[:, None, None]
        torch.testing.assert_close(prediction, weak + scales * (strong - weak), rtol=1e-12, atol=1e-12)
        assert len(counts(networks)["weak"]) == calls


def test_an_interval_that_leaves_groups_out_guides_them_at_every_time():
    rule = ClassifierFree({"image": 2.0, "dino": 3.0}, interval={"dino": (0.5, 1.0)})
    weights = total_weights([rule], CHANNELS, 0.2)
    assert weights[Condition(label=False)] == {"image": -1.0, "dino": 0.0, "clip": 0.0}


def test_rules_may_share_a_network_but_not_its_name():
    one, other = nn.Identity(), nn.Identity()
    assert networks_of([ClassifierFree(), Weaker(weak=one), Weaker(1.5, weak=one)]) == {"weak": one}
    with pytest.raises(ValueError, match="Weaker.networks names 'weak'"):
        networks_of([Weaker(weak=one), Weaker(weak=other)])


def test_no_rule_replaces_the_model():
    class Selfish(Weaker):
        def networks(self):
            return {"self": self.weak}

    with pytest.raises(ValueError, match="Selfish.networks names 'self'"):
        networks_of([Selfish(weak=nn.Identity())])


def test_a_rule_of_version_0_1_gets_the_time_of_the_image():
    class Older(Guidance):
        def deviations(self, channels, t):
            return {Condition(): {"image": t}, Condition(label=False): {"image": -t}}

        def check(self, channels, num_classes): ...

    times = {"image": 0.25, "dino": 0.75, "clip": 1.0}
    assert total_weights([Older()], CHANNELS, times)[Condition(label=False)]["image"] == -0.25


@pytest.mark.parametrize("rule", [ClassifierFree, RepresentationGuidance, Weaker])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": "2"}, "scale = '2': must be a finite number"),
        ({"scale": None}, "scale = None: must be a finite number"),
        ({"scale": True}, "scale = True: must be a finite number"),
        ({"scale": float("nan")}, "scale = nan: must be a finite number"),
        ({"scale": {}}, "scale = {}: must be a finite number"),
        ({"scale": {"image": "2"}}, "scale = {'image': '2'}: must be a finite number"),
        ({"scale": {"image": 2.0}, "groups": ("clip",)}, "groups = .*, but .*scale names image: leave groups out"),
        ({"interval": {"dino": (0.0, 0.5)}}, "interval names .*'dino'.* must be among image"),
        ({"interval": {"image": (0.5, 0.2)}}, "interval.'image'. = .0.5, 0.2.: must be two times"),
        ({"interval": {"image": (0.0, 1.2)}}, "interval.'image'. = .0.0, 1.2.: must be two times"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused_with_their_name(rule, settings, message):
    with pytest.raises(ValueError, match=f"^{rule.__name__}.{message}"):
        rule(**settings)


@pytest.mark.parametrize("rule", [ClassifierFree, RepresentationGuidance, Weaker])
def test_a_scale_of_an_unknown_group_is_refused_with_its_name(rule):
    with pytest.raises(ValueError, match=f"^{rule.__name__}.scale names .*'siglip'.*: must be among image, dino, clip"):
        rule({"image": 2.0, "siglip": 1.5}).check(CHANNELS, NULL)
