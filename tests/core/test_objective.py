import math

import pytest
import torch

from redi.core.channels import Channels, Vector
from redi.core.clocks import Lead
from redi.core.losses import min_snr
from redi.core.objective import JointObjective
from redi.core.processes.ddpm import DDPM
from redi.core.processes.flow_matching import FlowMatching
from redi.core.processes.gvp import GVP
from redi.core.processes.shifted import Shifted
from redi.core.processes.vp import VP
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=3, a=5, b=1)
NULL = 10


def objective(channels: Channels = CHANNELS, **settings) -> JointObjective:
    return JointObjective(channels=channels, num_classes=NULL, **{"label_dropout": 0.0} | settings)


def batch(n: int = 16, side: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, CHANNELS.total, side, side, generator=generator), torch.arange(n) % NULL


def zero_model(x_t, t, y):
    return torch.zeros_like(x_t)


class Recorder:
    """A model that records its inputs and predicts zero."""

    def __call__(self, x_t, t, y):
        self.x_t, self.t, self.y = x_t, t, y
        return torch.zeros_like(x_t)


class Oracle:
    """A model with access to the clean state, which returns the exact velocity (x - x_t) / (1 - t)."""

    def __init__(self, x):
        self.x = x

    def __call__(self, x_t, t, y):
        return (self.x - x_t) / (1 - t[:, None, None, None])


def errors_by_hand(x, noise):
    """{group: (N,)} mean squared error of the zero model: the target of flow matching is x - noise."""
    return {"image": (x - noise)[:, :3], "a": (x - noise)[:, 3:8], "b": (x - noise)[:, 8:]}


def replayed_draws(seed: int, x):
    """The t and noise that the objective draws first."""
    torch.manual_seed(seed)
    return torch.rand(len(x)), torch.randn_like(x)


def test_the_exact_target_has_loss_zero():
    x, y = batch()
    torch.manual_seed(0)
    losses = objective(representation_dropout=0.0)(Oracle(x), x, y)
    assert set(losses) == {"loss", "image", "a", "b"}
    assert all(value.shape == () for value in losses.values())
    assert all(value < 1e-8 for value in losses.values())  # float32, where 1 - t is small: (1e-7 / 1e-2)^2


def test_the_model_sees_the_corrupted_state_and_its_time():
    x, y = batch()
    t, noise = replayed_draws(0, x)
    torch.manual_seed(0)
    objective()(model := Recorder(), x, y)
    assert torch.equal(model.t, t)
    expected = t[:, None, None, None] * x + (1 - t[:, None, None, None]) * noise
    torch.testing.assert_close(model.x_t, expected)


def test_the_zero_model_has_the_mean_square_of_the_target_in_every_group():
    x, y = batch()
    _, noise = replayed_draws(0, x)
    torch.manual_seed(0)
    losses = objective()(zero_model, x, y)
    expected = {name: part.square().mean() for name, part in errors_by_hand(x, noise).items()}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(losses["loss"], sum(expected.values()))


def test_the_zero_model_on_standard_normal_data_expects_two_per_group():
    """The variance of x - noise is 2; over 460,800 numbers the standard error of its mean square is 0.004."""
    torch.manual_seed(0)
    x = torch.randn(200, 9, 16, 16)
    losses = objective()(zero_model, x, torch.zeros(200, dtype=torch.int64))
    for name in CHANNELS:  # the smallest group has 51,200 numbers
        assert losses[name].item() == pytest.approx(2, abs=5 * 2 * math.sqrt(2 / 51_200))


@pytest.mark.parametrize("weight", [0.25, {"a": 0.5, "b": 2.0}])
def test_every_representation_counts_with_its_lambda(weight):
    x, y = batch()
    torch.manual_seed(0)
    losses = objective(representation_weight=weight)(zero_model, x, y)
    a, b = (weight["a"], weight["b"]) if isinstance(weight, dict) else (weight, weight)
    torch.testing.assert_close(losses["loss"], losses["image"] + a * losses["a"] + b * losses["b"])


def test_gradient_of_the_prediction_is_lambda_times_that_of_each_groups_mean():
    x, y = batch()
    t, noise = replayed_draws(0, x)
    prediction = torch.zeros_like(x, requires_grad=True)
    torch.manual_seed(0)
    objective(representation_weight={"a": 0.5, "b": 3.0})(lambda *_: prediction, x, y)["loss"].backward()
    for name, weight in (("image", 1.0), ("a", 0.5), ("b", 3.0)):
        own = prediction.grad[:, CHANNELS.slice(name)]
        target = (x - noise)[:, CHANNELS.slice(name)]
        torch.testing.assert_close(own, -2 * weight * target / target.numel())


def test_lambda_zero_leaves_the_image_alone():
    x, y = batch()
    torch.manual_seed(0)
    losses = objective(representation_weight=0.0)(zero_model, x, y)
    assert losses["loss"] == losses["image"]
    assert losses["a"] > 0  # still reported


def test_dropped_samples_see_zeros_in_every_representation_and_their_own_image():
    x, y = batch(200)
    torch.manual_seed(0)
    objective()(whole := Recorder(), x, y)
    torch.manual_seed(0)
    objective(representation_dropout=0.3)(model := Recorder(), x, y)
    dropped = (model.x_t[:, 3:] == 0).flatten(1).all(1)
    assert 30 < dropped.sum() < 90  # 60 expected, standard deviation 6.5
    assert torch.equal(model.x_t[:, :3], whole.x_t[:, :3])
    assert torch.equal(model.x_t[~dropped], whole.x_t[~dropped])
    assert torch.equal(CHANNELS.mask(whole.x_t, dropped), model.x_t)


def test_dropped_samples_have_no_representation_loss_and_keep_their_image_loss():
    x, y = batch(200)
    prediction = torch.zeros_like(x, requires_grad=True)
    seen = {}

    def model(x_t, t, y):
        seen["dropped"] = (x_t[:, 3:] == 0).flatten(1).all(1)
        return prediction

    torch.manual_seed(0)
    losses = objective(representation_dropout=0.5, representation_weight={"a": 0.5, "b": 2.0})(model, x, y)
    losses["loss"].backward()
    dropped = seen["dropped"]
    assert not prediction.grad[dropped][:, 3:].any()
    assert (prediction.grad[~dropped] != 0).all()
    assert (prediction.grad[dropped][:, :3] != 0).all()

    _, noise = replayed_draws(0, x)
    parts = errors_by_hand(x, noise)
    per_sample = {name: part.square().mean(dim=(1, 2, 3)) for name, part in parts.items()}
    torch.testing.assert_close(losses["a"], per_sample["a"][~dropped].mean())  # without dropped samples
    kept = (~dropped).float()  # lambda of a dropped sample is 0; the mean is over all samples
    expected = per_sample["image"] + kept * (0.5 * per_sample["a"] + 2.0 * per_sample["b"])
    torch.testing.assert_close(losses["loss"], expected.mean())


def test_a_batch_that_is_dropped_whole_has_a_finite_loss():
    x, y = batch(1)
    reached = False
    for seed in range(20):
        torch.manual_seed(seed)
        losses = objective(representation_dropout=0.9)(model := Recorder(), x, y)
        assert losses["loss"].isfinite()
        if not model.x_t[:, 3:].any():
            reached = True
            assert losses["a"] == losses["b"] == 0
            assert losses["loss"] == losses["image"]
    assert reached


@pytest.mark.parametrize("setting", ["label_dropout", "representation_dropout"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_happens_at_its_rate(setting, rate):
    n = 20_000
    channels = Channels(image=1, a=1)
    x = torch.ones(n, 2, 1, 1)
    torch.manual_seed(0)
    drop = objective(channels, **{setting: rate})
    drop(model := Recorder(), x, torch.zeros(n, dtype=torch.int64))
    happened = model.y == NULL if setting == "label_dropout" else model.x_t[:, 1, 0, 0] == 0
    # five standard deviations of a binomial; exact at rate 0
    assert abs(int(happened.sum()) - rate * n) <= 5 * math.sqrt(n * rate * (1 - rate))


def test_label_and_representation_dropout_are_independent():
    n = 20_000
    torch.manual_seed(0)
    drop = objective(Channels(image=1, a=1), label_dropout=0.5, representation_dropout=0.5)
    drop(model := Recorder(), torch.ones(n, 2, 1, 1), torch.zeros(n, dtype=torch.int64))
    both = (model.y == NULL) & (model.x_t[:, 1, 0, 0] == 0)
    assert abs(int(both.sum()) - n / 4) < 5 * math.sqrt(n * 3 / 16)


def test_joint_dropout_drops_label_and_representations_of_the_same_samples():
    n, rate = 20_000, 0.3
    x, y = torch.ones(n, 2, 1, 1), torch.zeros(n, dtype=torch.int64)
    torch.manual_seed(0)
    objective(Channels(image=1, a=1), joint_dropout=rate)(model := Recorder(), x, y)
    without_label, without_features = model.y == NULL, model.x_t[:, 1, 0, 0] == 0
    assert torch.equal(without_label, without_features)
    assert abs(int(without_label.sum()) - rate * n) <= 5 * math.sqrt(n * rate * (1 - rate))


def test_joint_dropout_is_a_further_draw_that_leaves_the_others_as_they_are():
    x, y = torch.ones(20_000, 2, 1, 1), torch.zeros(20_000, dtype=torch.int64)
    rates, drawn = {"label_dropout": 0.2, "representation_dropout": 0.5}, []
    for joint in (0.0, 0.4):
        torch.manual_seed(0)
        drop = objective(Channels(image=1, a=1), **rates, joint_dropout=joint)
        labels, times, noise, dropped, num_kept = drop.draw(x, y)
        assert num_kept == (~dropped).sum()
        drawn.append((labels == NULL, dropped, times, noise))
    assert drop.trained_with == (0.2, 0.5, 0.4)
    (labels, dropped, *fixed), (more_labels, more_dropped, *same) = drawn
    assert all(torch.equal(one, other) for one, other in zip(fixed, same, strict=True))
    assert not (labels & ~more_labels).any() and not (dropped & ~more_dropped).any()
    kept = ~labels & ~dropped
    assert torch.equal(more_labels[kept], more_dropped[kept])
    assert abs(int(more_labels[kept].sum()) / int(kept.sum()) - 0.4) < 5 * math.sqrt(0.24 / int(kept.sum()))


def test_labels_that_are_kept_are_unchanged():
    x, y = batch(200)
    torch.manual_seed(0)
    objective(label_dropout=0.5)(model := Recorder(), x, y)
    assert model.y.dtype == torch.int64
    assert ((model.y == y) | (model.y == NULL)).all()


def test_time_is_uniform_between_noise_and_data():
    from scipy.stats import kstest

    torch.manual_seed(0)
    objective(Channels(image=1))(model := Recorder(), torch.zeros(5000, 1, 1, 1), torch.zeros(5000, dtype=torch.int64))
    assert kstest(model.t.numpy(), "uniform").pvalue > 0.01


def test_without_representations_the_loss_is_the_image_error():
    x, y = batch()
    losses = objective(Channels(image=9))(zero_model, x, y)
    assert set(losses) == {"loss", "image"}
    assert losses["loss"] == losses["image"]


def test_a_prediction_in_bfloat16_is_compared_in_float32():
    x, y = batch()
    losses = objective()(lambda x_t, t, y: torch.zeros_like(x_t).bfloat16(), x, y)
    assert losses["loss"].dtype == torch.float32


def test_the_same_seed_gives_the_same_loss():
    x, y = batch()
    values = []
    for _ in range(2):
        torch.manual_seed(3)
        values.append(objective(label_dropout=0.3, representation_dropout=0.3)(zero_model, x, y)["loss"])
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_dropout": 1.0}, r"JointObjective.label_dropout = 1.0: must be in \[0, 1\)"),
        ({"representation_dropout": -0.1}, r"JointObjective.representation_dropout = -0.1: must be in"),
        ({"joint_dropout": 1.5}, r"JointObjective.joint_dropout = 1.5: must be in \[0, 1\)"),
        ({"joint_dropout": 0.1, "dropout_rule": "released"}, "the published loss has no joint dropout; set"),
        ({"representation_weight": {"a": 1.0}}, r"representation_weight names \['a'\]: must name \['a', 'b'\]"),
        ({"process": torch.nn.Identity()}, "JointObjective.process must be one of processes"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        objective(**settings)


class RecorderOfState(Recorder):
    def __call__(self, x_t, t, y):
        super().__call__(x_t, t, y)
        return torch.zeros_like(x_t)


def test_the_released_rule_drops_the_clean_representation_of_the_whole_batch():
    x, y = batch(8)
    seen = set()
    for seed in range(30):
        model = RecorderOfState()
        t, noise = replayed_draws(seed, x)
        torch.manual_seed(seed)
        objective(representation_dropout=0.5, dropout_rule="released")(model, x, y)
        s = t[:, None, None, None]
        plain, noise_alone = s * x + (1 - s) * noise, (1 - s) * noise
        torch.testing.assert_close(model.x_t[:, :3], plain[:, :3])
        whole = [torch.allclose(model.x_t[:, 3:], other[:, 3:], atol=1e-6) for other in (plain, noise_alone)]
        assert sum(whole) == 1  # the same for all samples
        seen.add(whole.index(True))
    assert seen == {0, 1}


@pytest.mark.parametrize(
    "process", [FlowMatching(prediction="noise"), GVP(prediction="score"), VP(prediction="data"), DDPM()]
)
def test_the_released_rule_is_refused_for_other_predictions_than_the_velocity(process):
    with pytest.raises(ValueError, match="dropout_rule = 'released' reproduces .* velocity predictions only: set"):
        objective(process=process, representation_dropout=0.2, dropout_rule="released")
    objective(process=process, dropout_rule="released")  # nothing is dropped
    objective(process=Shifted(shift={"a": 0.5}), representation_dropout=0.2, dropout_rule="released")


def test_an_unknown_dropout_rule_is_refused():
    with pytest.raises(ValueError, match="dropout_rule = 'batch'"):
        objective(dropout_rule="batch")


def test_independent_timesteps_give_every_group_its_own_noise():
    x, y = batch()
    torch.manual_seed(0)
    times = torch.rand(len(x), 3)
    noise = torch.randn_like(x)
    torch.manual_seed(0)
    objective(independent_timesteps=True)(model := Recorder(), x, y)
    assert torch.equal(model.t, times)
    for group, index in (("image", 0), ("a", 1), ("b", 2)):
        where, t = CHANNELS.slice(group), times[:, index, None, None, None]
        torch.testing.assert_close(model.x_t[:, where], (t * x + (1 - t) * noise)[:, where])


def test_independent_timesteps_need_a_model_that_is_told_them():
    settings = {"channels": CHANNELS, "grid": (4, 4), "num_classes": NULL, "width": 16, "depth": 1, "num_heads": 2}
    draws_independently = objective(independent_timesteps=True)
    with pytest.raises(ValueError, match="clock = Independent needs a model with a t per channel group"):
        draws_independently.check_model(DiffusionTransformer(**settings))
    draws_independently.check_model(DiffusionTransformer(**settings, group_timesteps=True))


def test_a_shift_gives_groups_the_times_of_the_shifted_process():
    x, y = batch()
    t, noise = replayed_draws(0, x)
    torch.manual_seed(0)
    objective(process=Shifted(shift={"a": 0.25}))(model := Recorder(), x, y)
    ahead = (t / (t + 0.25 * (1 - t)))[:, None, None, None]
    torch.testing.assert_close(model.t[:, 0], t)
    torch.testing.assert_close(model.t[:, 1], ahead.flatten())
    torch.testing.assert_close(model.x_t[:, 3:8], (ahead * x + (1 - ahead) * noise)[:, 3:8])
    shared = t[:, None, None, None]
    torch.testing.assert_close(model.x_t[:, :3], (shared * x + (1 - shared) * noise)[:, :3])


class Variances:
    """Predicts noise 0, and v for the image's variance."""

    def __init__(self, v):
        self.v = v

    def __call__(self, x_t, t, y):
        self.t = t
        return torch.cat([torch.zeros_like(x_t), self.v.expand(len(x_t), 3, *x_t.shape[2:])], dim=1)


def test_a_learned_variance_is_trained_by_the_bound_and_the_mean_is_not():
    x, y = batch()
    v = torch.zeros(1, 3, 1, 1, requires_grad=True)
    torch.manual_seed(0)
    losses = objective(process=DDPM(learned_variance="image"))(model := Variances(v), x, y)
    assert "vlb" in losses
    assert model.t.min() >= 0 and model.t.max() <= 999 and (model.t == model.t.round()).all()
    torch.testing.assert_close(losses["loss"], losses["image"] + losses["a"] + losses["b"] + losses["vlb"])
    losses["loss"].backward()
    assert v.grad.abs().sum() > 0


def test_a_fixed_variance_adds_no_term():
    x, y = batch()
    losses = objective(process=DDPM(learned_variance=()))(zero_model, x, y)
    assert set(losses) == {"loss", "image", "a", "b"}


@pytest.mark.parametrize("process", [DDPM, lambda **_: FlowMatching()])
def test_the_model_is_told_what_it_must_give(process):
    class Codec:
        channels, alignments = CHANNELS, {}

        def grid(self, image_size):
            return image_size, image_size

    class Data:
        num_classes, image_size = NULL, 8

    arguments = objective(process=process()).model_arguments(Codec(), Data())
    assert arguments.get("variance_groups", ()) == (("image", "a", "b") if process is DDPM else ())


def test_given_draws_give_the_losses_of_the_same_draws():
    x, y = batch()
    terms = objective(representation_dropout=0.5)
    torch.manual_seed(0)
    drawn = terms(zero_model, x, y)
    t, noise = replayed_draws(0, x)
    dropped = torch.rand(len(x)) < 0.5
    given = terms.losses(zero_model, x, y, t, noise, dropped)
    assert all(torch.equal(drawn[name], given[name]) for name in drawn)


@pytest.mark.parametrize("process", [FlowMatching(), DDPM()], ids=["flow matching", "DDPM"])
def test_losses_per_sample_are_those_of_each_sample_alone(process):
    x, y = batch(5)
    terms = objective(process=process, representation_dropout=0.4, representation_weight=0.7)
    torch.manual_seed(0)
    _, times, noise, _, _ = terms.draw(x, y)
    dropped, features = torch.tensor([True, False, False, True, False]), torch.randn(5, 6, 2, 2)

    def model(x_t, t, y, align):
        variances = [x_t.cos()] if terms.process.variance_groups else []
        return torch.cat([x_t.sin(), *variances], dim=1), x_t.flatten(1)[:, :24].reshape(-1, 4, 6)

    draws = (times, noise, dropped)
    each = terms.losses(model, x, y, *draws, alignment=features, per_sample=True)
    together = terms.losses(model, x, y, *draws, alignment=features)
    assert set(each) == set(together) and all(value.shape == (5,) for value in each.values())
    torch.testing.assert_close(each["loss"].mean(), together["loss"])
    for i in range(5):
        alone = terms.losses(
            model, x[i : i + 1], y[i : i + 1], *(d[i : i + 1] for d in draws), alignment=features[i : i + 1]
        )
        for name, value in alone.items():
            torch.testing.assert_close(each[name][i], value, msg=name)


# Vectors

TOKEN = Channels(image=3, a=5, token=Vector(10, channels=1))  # on 4 x 4: 6 of padding


def with_padding(x: torch.Tensor) -> torch.Tensor:
    """The state with other numbers in the padding of its vectors."""
    return x + 3 * (1 - TOKEN.trim(torch.ones_like(x)))


def token_batch(n: int = 16):
    x, y = batch(n)
    return TOKEN.trim(x), y


def token_model():
    """A network with weights other than 0, whose parameters get gradients."""
    torch.manual_seed(3)
    settings = {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "group_timesteps": True}
    model = DiffusionTransformer(channels=TOKEN, grid=(4, 4), num_classes=NULL, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("settings", [{}, {"cosine_weight": 1.0}, {"cosine_weight": 1.0, "cosine_over": "groups"}])
def test_padding_of_the_state_reaches_neither_loss_nor_gradient(settings):
    found = []
    for change in (lambda x: x, with_padding):
        x, y = token_batch()
        torch.manual_seed(0)
        further = {"clock": Lead(), "representation_dropout": 0.3, "time_weight": min_snr}
        losses = objective(TOKEN, **settings, **further)(model := token_model(), change(x), y)
        losses["loss"].backward()
        found.append([*losses.values(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_noise_has_no_padding_and_predictions_there_are_no_error():
    x, y = token_batch()
    made = objective(TOKEN, cosine_weight=1.0, cosine_over="groups")
    torch.manual_seed(0)
    _, times, noise, dropped, _ = made.draw(x, y)
    assert not noise[:, 8].flatten(1)[:, 10:].any() and noise[:, 8].flatten(1)[:, :10].all()
    prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    losses = made.losses(lambda *_: prediction, x, y, times, noise, dropped)
    losses["loss"].backward()
    assert not prediction.grad[:, 8].flatten(1)[:, 10:].any() and prediction.grad[:, 8].flatten(1)[:, :10].all()
    error = (prediction - (x - noise)).double()[:, 8].flatten(1)[:, :10].square().mean()
    torch.testing.assert_close(losses["token"].double(), error, rtol=1e-5, atol=0)


def test_a_vector_has_a_lambda_of_its_own():
    x, y = token_batch()
    weights = {"a": 0.5, "token": 0.03}
    torch.manual_seed(0)
    losses = objective(TOKEN, representation_weight=weights)(zero_model, x, y)
    expected = losses["image"] + 0.5 * losses["a"] + 0.03 * losses["token"]
    torch.testing.assert_close(losses["loss"], expected)


def test_a_vector_has_a_time_of_its_own():
    x, y = token_batch()
    made, seen = objective(TOKEN, clock=Lead({"token": 0.5})), []

    def record(x_t, t, y):
        seen.extend([x_t, t])
        return torch.zeros_like(x_t)

    torch.manual_seed(0)
    _, s, noise, dropped, _ = made.draw(x, y)
    sums = made.losses(record, x, y, s, noise, dropped, by_time=True)
    u = 1.5 * s - 0.5  # the image starts at u = 0, the token at u = -0.5
    image, token = u.clamp(0, 1), (u + 0.5).clamp(0, 1)
    torch.testing.assert_close(seen[1], torch.stack([image, image, token], dim=1))
    expected = token[:, None, None] * x[:, 8] + (1 - token)[:, None, None] * noise[:, 8]
    torch.testing.assert_close(seen[0][:, 8], expected)
    counts = torch.histc(token, bins=10, min=0, max=1)
    torch.testing.assert_close(sums["loss_by_t/token"][1], counts)


@pytest.mark.parametrize("over", ["state", "groups"])
def test_the_cosine_over_the_state_leaves_vectors_out(over):
    x, y = token_batch()
    made = objective(TOKEN, cosine_weight=1.0, cosine_over=over)
    torch.manual_seed(0)
    _, t, noise, dropped, _ = made.draw(x, y)
    prediction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    found = made.losses(lambda *_: prediction, x, y, t, noise, dropped)["cosine"]
    one, other = prediction.double(), (x - noise).double()

    def error(part):
        a, b = part(one), part(other)
        return (1 - (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()).mean()

    vector = error(lambda v: v[:, 8].flatten(1)[:, :10])
    groups = error(lambda v: v[:, :3]) + error(lambda v: v[:, 3:8]) + vector
    expected = groups if over == "groups" else error(lambda v: v[:, :8])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_the_variational_bound_of_a_vector_is_the_mean_over_its_numbers():
    full, some = (Channels(image=1, token=Vector(length, channels=1)) for length in (16, 10))
    generator = torch.Generator().manual_seed(0)
    x, noise, t = torch.randn(4, 2, 4, 4, generator=generator), torch.randn(4, 2, 4, 4), torch.linspace(0.1, 0.9, 4)
    output = torch.randn(4, 4, 4, 4, generator=generator)
    bounds = []
    for channels in (Channels(image=1, token=1), full):  # without padding, a vector has the bound of a map
        process = DDPM().for_channels(channels)
        bounds.append(process.variational_bound(output, x, process.mix(x, noise, t[:, None, None, None]), t)["token"])
    assert torch.equal(*bounds)
    process, few = DDPM().for_channels(some), []
    for padding in (0.0, 5.0):
        changed = output.clone()
        changed[:, 1::2].flatten(2)[..., 10:] = padding
        few.append(process.variational_bound(changed, x, process.mix(x, noise, t[:, None, None, None]), t)["token"])
    assert torch.equal(*few) and not torch.allclose(few[0], bounds[0])
