"""Guidance by the prediction of an inner block: its formulas by hand, its head, its loss and its refusals."""

import json

import pytest
import torch
from torch import nn

from redi.core.channels import Channels
from redi.core.clocks import Lead
from redi.core.losses import min_snr
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.samplers.euler import Euler
from redi.fusion.merged import Merged
from redi.fusion.separate import Separate
from redi.guidance import guided
from redi.guidance.autoguidance import Autoguidance
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.inner import InnerGuidance
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.interface import build_model
from redi.models.transformer import DiffusionTransformer
from redi.sampling.generate import generate

CHANNELS = Channels(image=2, z=1)
ALL = (0.0, 1.0)
NULL, T = 3, 0.3
Y = torch.tensor([0, 2])


def tiny(random=True, **settings):
    torch.manual_seed(0)
    shape = {"channels": CHANNELS, "grid": (4, 4), "num_classes": NULL, "inner_layer": 1} | settings
    model = DiffusionTransformer(width=16, depth=2, num_heads=2, patch_size=2, **shape)
    for parameter in model.parameters() if random else ():
        nn.init.normal_(parameter, std=0.3)
    return model.double()


def state():
    return torch.randn(2, CHANNELS.total, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))


class Counted:
    """A network that counts rows and inner predictions."""

    def __init__(self, model):
        self.model, self.rows, self.inner = model, 0, 0

    def __call__(self, x, t, y, **asks):
        self.rows, self.inner = self.rows + len(x), self.inner + len(asks)
        return self.model(x, t, y, **asks)


def guide(models, rules, t=T):
    return guided(models, rules, CHANNELS, Y, NULL, lambda t: t)(state(), t)


def both(model, y=Y):
    return model(state(), torch.full((2,), T, dtype=torch.float64), y, inner=True)


# ---- the rule


def test_the_guided_prediction_moves_away_from_the_inner_one_in_one_evaluation():
    counted = Counted(tiny())
    full, inner = both(counted.model)
    torch.testing.assert_close(guide(counted, [InnerGuidance(1.78)]), inner + 1.78 * (full - inner))
    assert (counted.rows, counted.inner) == (2, 1)
    image = guide(counted, [InnerGuidance({"image": 1.5})])
    torch.testing.assert_close(image[:, :2], (inner + 1.5 * (full - inner))[:, :2])
    torch.testing.assert_close(image[:, 2:], full[:, 2:])


@pytest.mark.parametrize(("rule", "t"), [(InnerGuidance(1.0), T), (InnerGuidance(), 0.95)])
def test_at_scale_one_and_outside_the_interval_the_inner_prediction_is_not_computed(rule, t):
    counted = Counted(tiny())
    assert torch.equal(guide(counted, [rule], t), guide(counted, [], t))
    assert counted.inner == 0 and counted.rows == 4


@pytest.mark.parametrize("order", [1, -1])
def test_it_applies_inside_each_condition_of_classifier_free_guidance(order):
    counted = Counted(tiny())
    q, null = (inner + 1.5 * (full - inner) for full, inner in (both(counted.model), both(counted.model, Y * 0 + NULL)))
    rules = [ClassifierFree(2.0, groups=("image", "z")), InnerGuidance(1.5)][::order]
    torch.testing.assert_close(guide(counted, rules), null + 2 * (q - null))
    assert (counted.rows, counted.inner) == (4, 1)


@pytest.mark.parametrize("head", [None, 2])
def test_a_weak_network_is_not_asked_for_an_inner_prediction(head):
    weak = tiny(inner_layer=head)
    with torch.no_grad():
        weak.final_modulation[1].bias.add_(0.1)
    counted = {"self": Counted(tiny()), "weak": Counted(weak)}
    (full, inner), other = both(counted["self"].model), weak(state(), torch.full((2,), T).double(), Y)
    rule = Autoguidance(2.0, weak="weak", step=4)
    counted[next(iter(rule.networks()))] = counted.pop("weak")
    q = inner + 1.5 * (full - inner)
    torch.testing.assert_close(guide(counted, [InnerGuidance(1.5), rule]), other + 2 * (q - other))
    assert [network.inner for network in counted.values()] == [1, 0]


def test_two_inner_rules_with_opposite_offsets_cancel():
    counted = Counted(tiny())
    assert torch.equal(guide(counted, [InnerGuidance(1.5), InnerGuidance(0.5)]), guide(counted, []))
    assert counted.inner == 0


def test_an_evaluation_with_its_inner_prediction_is_counted_once():
    codec = JointCodec(Pixels(channels=1))
    model = tiny(channels=codec.channels).float()
    rules = [InnerGuidance(interval=(0.0, 0.5)), ClassifierFree(2.0)]
    record = generate(model, codec, FlowMatching(), labels=[0, 1], sampler=Euler(4), guidance=rules).record
    assert record["network_evaluations_per_image"] == 8
    assert json.loads(json.dumps(record["guidance"]))[0] == {
        "name": "InnerGuidance", "scale": 1.78, "groups": None, "interval": [0.0, 0.5],
    }  # fmt: skip


def test_a_model_without_an_inner_head_is_refused():
    codec = JointCodec(Pixels(channels=1))
    model = tiny(channels=codec.channels, inner_layer=None)
    with pytest.raises(
        ValueError, match="InnerGuidance needs an inner prediction.* train with JointObjective.inner_layer"
    ):
        generate(model, codec, FlowMatching(), labels=[0], sampler=Euler(4), guidance=[InnerGuidance()])
    with pytest.raises(ValueError, match="^JointObjective.inner_layer = None: must be a block"):
        both(tiny(inner_layer=None))


# ---- the head


@pytest.mark.parametrize("fusion", [Merged, Separate])
def test_the_inner_prediction_after_the_last_block_with_the_weights_of_the_heads_is_the_full_one(fusion):
    model = tiny(inner_layer=2, fusion=fusion, variance_groups=("z",))
    for modulation in (model.final_modulation[1], model.inner_head["modulation"][1]):
        nn.init.zeros_(modulation.weight)  # one depends on the tokens, the other on the label
        nn.init.constant_(modulation.bias, 0.4)
    for name in ("heads", "variance_heads"):
        getattr(model.inner_head["fusion"], name).load_state_dict(getattr(model.fusion, name).state_dict())
    full, inner = both(model)
    torch.testing.assert_close(inner, full)
    assert inner.shape[1] == CHANNELS.total + 1


def test_the_inner_prediction_reads_its_block_and_every_weight_of_the_head():
    model = tiny()
    both(model)[1].square().sum().backward()
    assert all(parameter.grad.any() for parameter in (*model.blocks[0].parameters(), *model.inner_head.parameters()))
    assert all(parameter.grad is None for parameter in model.blocks[1].parameters())


def test_the_head_changes_no_other_initial_weight_and_no_prediction():
    model, plain = tiny(random=False), tiny(random=False, inner_layer=None)
    assert not any("inner" in name for name in plain.state_dict())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    assert not both(model)[1].any()


# ---- the loss

OBJECTIVES = {
    "plain": {},
    "DDPM, learned variance": {"process": DDPM(num_timesteps=20, learned_variance=("image",))},
    "every term": {
        "process": FlowMatching(prediction="data", loss_on="velocity"),
        "clock": Lead(offset=0.3),
        "cosine_weight": 0.5,
        "time_weight": min_snr,
    },
}


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_inner_loss_is_that_of_the_prediction_with_the_same_draws(settings, per_sample):
    settings = {"channels": CHANNELS, "num_classes": NULL, "representation_dropout": 0.3} | settings
    plain, objective = JointObjective(**settings), JointObjective(**settings, inner_layer=1, inner_weight=0.5)
    torch.manual_seed(0)
    x, y = torch.randn(6, CHANNELS.total, 4, 4), torch.arange(6) % NULL
    torch.manual_seed(1)
    y, *draws = plain.draw(x, y)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip((y, *draws), objective.draw(x, torch.arange(6) % NULL), strict=True))
    *_, num_kept = draws
    width = CHANNELS.total + (2 if plain.process.variance_groups else 0)
    one, other = torch.randn(2, 6, width, 4, 4).unbind()

    def losses(objective, prediction):
        return objective.losses(lambda *_, **asks: prediction, x, y, *draws, per_sample=per_sample, by_time=True)

    found, full, inner = losses(objective, (one, other)), losses(plain, one), losses(plain, other)
    torch.testing.assert_close(found.pop("inner"), inner["loss"], rtol=0, atol=0)
    torch.testing.assert_close(found.pop("loss"), full.pop("loss") + 0.5 * inner["loss"])
    assert found.keys() == full.keys() and all(torch.equal(found[name], full[name]) for name in full)


def test_it_is_trained_beside_repa():
    model = tiny(alignment_dim=5, alignment_layer=1, alignment_width=8).float()
    objective = JointObjective(channels=CHANNELS, num_classes=NULL, inner_layer=1)
    losses = objective(model, state().float(), Y, alignment=torch.randn(2, 5, 2, 2))
    parts = losses["image"] + losses["z"] + losses["inner"] + 0.5 * losses["alignment"]
    torch.testing.assert_close(losses["loss"], parts)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ---- refusals


@pytest.mark.parametrize("layer", [0, -1, 1.5, True, "2"])
def test_a_layer_that_is_no_number_of_a_block_is_refused(layer):
    with pytest.raises(ValueError, match=r"^JointObjective.inner_layer = .* must be an integer of at least 1"):
        JointObjective(channels=CHANNELS, num_classes=NULL, inner_layer=layer)


def test_a_layer_beyond_the_depth_is_refused():
    with pytest.raises(ValueError, match=r"^JointObjective.inner_layer = 3: must be in 1 ... 2, the depth"):
        tiny(inner_layer=3)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_without_effect_is_refused(weight):
    with pytest.raises(ValueError, match="^JointObjective.inner_weight = .*: must be finite and greater than 0"):
        JointObjective(channels=CHANNELS, num_classes=NULL, inner_layer=1, inner_weight=weight)


def test_another_model_that_has_no_such_head_is_refused():
    class Other(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def forward(self, x, t, y):
            return x

    with pytest.raises(ValueError, match=r"Other does not accept inner_layer, which JointObjective.*inner_layer"):
        build_model(Other, {"channels": CHANNELS, "grid": (4, 4), "num_classes": NULL, "inner_layer": 1})
