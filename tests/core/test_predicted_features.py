"""Predicted features as a condition: two passes against a computation by hand, shares, gradients and refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.likelihood import log_likelihood
from redi.core.objective import JointObjective
from redi.core.predicted_features import ABSENT, PREDICTED, TRUE, PredictedFeatures
from redi.core.processes.flow_matching import FlowMatching
from redi.core.resize import resized
from redi.core.samplers.euler import Euler
from redi.core.samplers.heun import Heun
from redi.core.samplers.ode import AdaptiveODE
from redi.guidance import guided
from redi.guidance.autoguidance import Autoguidance
from redi.guidance.classifier_free import ClassifierFree
from redi.guidance.representation import RepresentationGuidance
from redi.models.autoencoders.pixels import Pixels
from redi.models.codec import JointCodec
from redi.models.encoders.domain import DomainEncoder
from redi.models.interface import build_model
from redi.models.reducers import PCA
from redi.models.representation import Representation
from redi.models.transformer import DiffusionTransformer
from redi.runtime.randomness import Rows
from redi.sampling.generate import check_generation, generate

IMAGE, E, P, NULL = Channels(image=3), 6, 4, 3


def objective(**settings):
    return JointObjective(
        **{"channels": IMAGE, "num_classes": NULL, "predicted_features": PredictedFeatures()} | settings
    )


def network(random=True, seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"alignment_dim": E, "takes_features": True, "alignment_layer": -1, "alignment_width": 8} | settings
    shape = {"channels": IMAGE, "grid": (4, 4), "num_classes": NULL, "width": 16, "depth": 2, "num_heads": 2}
    model = DiffusionTransformer(patch_size=2, **shape, **settings)
    for parameter in model.parameters() if random else ():
        nn.init.normal_(parameter, std=0.3)
    return model


def batch(n=6):
    torch.manual_seed(1)
    return torch.randn(n, 3, 4, 4), torch.arange(n) % NULL, torch.randn(n, E, 3, 3)


# ---- the network


def test_the_condition_and_the_patches_pass_one_linear_layer_of_patch_values_and_normalised_features():
    model, (x, _, _) = network().double(), batch()
    x, features = x.double(), torch.randn(6, P, E, dtype=torch.float64)
    patches = functional.unfold(x, 2, stride=2).transpose(1, 2)  # (N, P, C p p)
    mean, variance = features.mean(-1, keepdim=True), features.var(-1, correction=0, keepdim=True)
    embeddings = model.fusion.embeddings
    weight = torch.cat([embeddings.image.weight.flatten(1), embeddings.condition.weight], dim=1)
    inputs = torch.cat([patches, (features - mean) / (variance + 1e-5).sqrt()], dim=-1)
    expected = inputs @ weight.T + embeddings.image.bias + model.fusion.positions
    assert torch.allclose(model.fusion.add_condition(model.fusion.embed(x), features), expected)


def test_features_of_zero_are_no_condition_and_with_zero_weights_the_model_is_the_plain_one():
    model, (x, y, _) = network(), batch()
    with_zeros = model(x, torch.full((6,), 0.3), y, features=torch.zeros(6, P, E))
    assert torch.equal(with_zeros, model(x, torch.full((6,), 0.3), y))
    plain = network(random=False, alignment_dim=None, takes_features=False, alignment_layer=8)
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    nn.init.zeros_(model.fusion.embeddings.condition.weight)
    features = torch.randn(6, P, E)
    assert not missing
    assert torch.equal(
        model(x, torch.rand(6), y, features=features).shape and with_zeros, plain(x, torch.full((6,), 0.3), y)
    )
    assert torch.equal(model(x, torch.full((6,), 0.3), y, features=features), with_zeros)


def test_the_head_reads_the_last_block():
    model, (x, y, _) = network(), batch()
    outputs = []
    model.blocks[-1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    predicted = model(x, torch.rand(6), y, align=True)[-1]
    assert torch.equal(model.projector(outputs[0]), predicted)


# ---- training


def test_the_losses_are_those_of_two_passes_by_hand():
    model, loss_of, (x, y, encoded) = network().double(), objective(), batch()
    x, encoded = x.double(), encoded.double()
    t, noise, sources = torch.rand(6).double(), torch.randn_like(x), torch.tensor([ABSENT, TRUE, *[PREDICTED] * 4])
    found = loss_of.losses(
        model, x, y, t, noise, torch.zeros(6, dtype=torch.bool), alignment={"alignment": encoded}, sources=sources
    )
    found["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    time = t[:, None, None, None]
    x_t, velocity = time * x + (1 - time) * noise, x - noise
    true = resized(encoded, (2, 2)).flatten(2).transpose(1, 2)
    condition = model(x_t, t, y, align=True)[1].detach().clone()
    condition[0], condition[1] = 0.0, true[1]
    predicted, second = model(x_t, t, y, align=True, features=condition)
    expected = (predicted - velocity).square().mean() - 0.5 * functional.cosine_similarity(second, true, dim=-1).mean()
    expected.backward()
    assert torch.allclose(found["loss"].double(), expected, rtol=1e-5)
    for name, parameter in model.named_parameters():  # also: no gradient flows through the first pass
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7), name


def test_the_first_pass_is_in_eval_mode_without_a_condition_or_a_gradient():
    passes = []

    class Recorded(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Identity().eval()

        def forward(self, x, t, y, *, align, features=None):
            passes.append((self.training, torch.is_grad_enabled(), features is None))
            return x, x.new_ones(len(x), P, E)

    model, (x, y, encoded) = Recorded(), batch()
    objective()(model, x, y, alignment=encoded)
    assert passes == [(False, False, True), (True, True, False)] and not model.frozen.training


def test_in_bfloat16_every_weight_has_its_gradient():
    model, loss_of, (x, y, encoded) = network(), objective(), batch()
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = loss_of(model, x, y, alignment=encoded)["loss"]
        gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
    assert all(torch.allclose(a, b, rtol=0.1, atol=0.1 * float(a.abs().max())) for a, b in zip(*gradients, strict=True))


def test_the_shares_are_those_of_independent_draws_and_the_other_random_numbers_stay():
    torch.manual_seed(0)
    sources = PredictedFeatures(true_share=0.2, absent_share=0.3).draw(Rows.whole(50_000), "cpu")
    shares = torch.bincount(sources, minlength=3) / len(sources)
    expected = torch.tensor([0.3, 0.7 * 0.2, 0.7 * 0.8])  # absent, true, predicted
    assert torch.allclose(shares, expected, atol=0.01)  # four standard deviations are at most 0.009
    x, y, _ = batch()
    torch.manual_seed(3)
    whole = objective().draw(x, y), objective().draw_more(x)["sources"]
    torch.manual_seed(3)
    part = objective().draw(x[2:4], y[2:4], rows := Rows(2, 2, 6)), objective().draw_more(x[2:4], rows)["sources"]
    torch.manual_seed(3)
    plain = objective(predicted_features=None).draw(x, y)
    assert torch.equal(part[1], whole[1][2:4]) and objective(predicted_features=None).draw_more(x) == {}
    assert all(torch.equal(a, b) for a, b in zip(whole[0], plain, strict=True))


# ---- sampling


class Linear(nn.Module):
    """A toy of one pixel: v = a x + label + b c and the features d x + e c, with the condition c."""

    feature_shape = (1, 1)

    def __init__(self, *coefficients):
        super().__init__()
        self.rows, self.coefficients = [], nn.Parameter(torch.tensor(coefficients, dtype=torch.float64))
        self.channels, self.grid, self.num_classes = Channels(image=1), (1, 1), NULL

    def forward(self, x, t, y, *, align=False, features=None):
        a, b, d, e = self.coefficients
        c = 0 if features is None else features.reshape(-1, 1, 1, 1)
        self.rows.append(len(x))
        return a * x + y.reshape(-1, 1, 1, 1) + b * c, (d * x + e * c).reshape(-1, 1, 1)


def rolled(x, y, scale, until, num_steps, strong, weak=None, weak_scale=1.0):
    """Euler's method for `Linear` with plain numbers: guidance by the null label until t, and by a weaker network."""
    c_label = c_null = c_weak = 0.0

    def evaluate(x, label, c, coefficients):
        a, b, d, e = coefficients
        return a * x + label + b * c, d * x + e * c

    for k in range(num_steps):
        v, c_label = evaluate(x, y, c_label, strong)
        guided_v = v
        if k / num_steps <= until:
            null, c_null = evaluate(x, NULL, c_null, strong)  # later it stays as it is
            guided_v = guided_v + (scale - 1) * (v - null)
        if weak:
            poor, c_weak = evaluate(x, y, c_weak, weak)
            guided_v = guided_v + (weak_scale - 1) * (v - poor)
        x = x + guided_v / num_steps
    return x


STRONG, WEAK = (0.3, 0.7, -0.4, 0.5), (0.1, 0.2, 0.3, -0.6)


def test_every_condition_and_network_carries_its_own_prediction_with_one_evaluation_each():
    noise, y = torch.randn(3, 1, 1, 1, dtype=torch.float64), torch.tensor([0, 1, 2])
    models = {"self": Linear(*STRONG), "weak": Linear(*WEAK)}
    weak = Autoguidance(1.6, weak=models["weak"])
    rules = [ClassifierFree(2.0, interval=(0.0, 0.5)), weak]
    models[next(iter(weak.networks()))] = models.pop("weak")
    for _ in range(2):  # fresh in every call of `guided`
        denoise = guided(models, rules, Channels(image=1), y, NULL, lambda t: t)
        x = Euler(5)(denoise, FlowMatching(), lambda: noise)
        for row in range(3):
            expected = rolled(float(noise[row]), float(y[row]), 2.0, 0.5, 5, STRONG, WEAK, 1.6)
            assert x[row].item() == pytest.approx(expected, rel=1e-12)
    assert [model.rows for model in models.values()] == [[6, 6, 6, 3, 3] * 2, [3] * 10]


def test_heun_carries_the_prediction_of_the_corrector():
    model, noise = Linear(*STRONG), torch.randn(1, 1, 1, 1, dtype=torch.float64)
    denoise = guided(model, [], Channels(image=1), torch.tensor([1]), NULL, lambda t: t)
    found = Heun(6)(denoise, FlowMatching(), lambda: noise)
    (a, b, d, e), x, c = STRONG, float(noise), 0.0
    for _ in range(3):
        first, c = a * x + 1 + b * c, d * x + e * c
        moved = x + first / 3
        second, c = a * moved + 1 + b * c, d * moved + e * c
        x = x + (first + second) / 6
    assert found.item() == pytest.approx(x, rel=1e-12)


def test_samples_do_not_depend_on_the_batch_and_the_evaluations_are_those_of_the_plain_model():
    codec, model = JointCodec(Pixels()), network()
    settings = {"labels": [0, 1, 2, 0, 1], "sampler": Euler(3), "guidance": [ClassifierFree(1.5, interval=(0.3, 1.0))]}
    whole, parts = (generate(model, codec, FlowMatching(), batch_size=n, **settings) for n in (5, 2))
    assert torch.allclose(whole.x, parts.x, atol=1e-5)
    assert whole.record["network_evaluations_per_image"] == 3 + 2
    blind = network()
    nn.init.zeros_(blind.fusion.embeddings.condition.weight)
    assert not torch.allclose(generate(blind, codec, FlowMatching(), **settings).x, whole.x, atol=1e-3)


# ---- refusals


class Data:
    image_size, num_classes = 4, NULL


ENCODER = DomainEncoder(width=8, depth=1)


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ({}, {}, "no head to predict features with; bind JointCodec.alignment"),
        (
            {"alignment": {"a": ENCODER, "b": ENCODER}},
            {},
            r"several encoders \(alignment_a, alignment_b\); must be one",
        ),
        (
            {"alignment": ENCODER},
            {"alignment_end_step": 9},
            "JointObjective.alignment_end_step = 9 with predicted_feat",
        ),
        (
            {"alignment": ENCODER},
            {"alignment_weight": 0.0},
            "JointObjective.alignment_weight = 0.0 with predicted_feat",
        ),
        ({"alignment": ENCODER}, {"channels": Channels(image=3, z=2)}, "z in the joint state are diffused"),
    ],
)
def test_a_codec_or_a_setting_that_does_not_fit_is_refused_before_the_first_step(parts, settings, message):
    with pytest.raises(ValueError, match=message):
        objective(**settings).model_arguments(JointCodec(**parts), Data)


@pytest.mark.parametrize("name", ["true_share", "absent_share"])
@pytest.mark.parametrize("share", [-0.1, 1.5, None, float("nan")])
def test_a_share_outside_its_range_is_refused(name, share):
    with pytest.raises(ValueError, match=rf"PredictedFeatures.{name} = {share}:? must be"):
        PredictedFeatures(**{name: share})


def test_other_objects_models_and_missing_features_are_refused_by_name():
    with pytest.raises(ValueError, match="JointObjective.predicted_features = 0.5: must be @PredictedFeatures"):
        objective(predicted_features=0.5)
    with pytest.raises(ValueError, match="predicted_features needs the features of the encoder in every step"):
        objective()(network(), *batch()[:2])
    arguments = objective().model_arguments(JointCodec(alignment=ENCODER), Data)
    with pytest.raises(ValueError, match="does not accept alignment_dim, takes_features"):
        build_model(lambda channels: nn.Identity(), arguments)


def test_features_of_another_width_are_refused():
    x, y, encoded = batch()
    with pytest.raises(
        ValueError, match="JointCodec.alignment gives features of width 5, but the network predicts 6: must be equal"
    ):
        objective()(network(), x, y, alignment=encoded[:, :5])


def test_rules_samplers_and_likelihoods_that_the_model_was_not_trained_for_are_refused():
    model, process = network(), FlowMatching()
    for rule, message in [
        (RepresentationGuidance(), "RepresentationGuidance needs a representation"),
        (ClassifierFree(null="label+representations"), "needs a representation, but this model has only the image"),
        (ClassifierFree(groups=("dinov2",)), "names \\['dinov2'\\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_generation(Euler(4), process, [rule], model)
    with pytest.raises(ValueError, match="AdaptiveODE repeats steps, but the predicted features"):
        check_generation(AdaptiveODE(), process, [], model)
    denoise = guided(model, [], IMAGE, torch.tensor([0]), NULL, process.model_time)
    with pytest.raises(ValueError, match="log_likelihood: the model predicts features"):
        log_likelihood(denoise, process, torch.zeros(1, 3, 4, 4))


def test_a_representation_stands_for_its_encoder_as_a_target():
    assert JointCodec(alignment=Representation(ENCODER, PCA(2))).alignments["alignment"] is ENCODER
