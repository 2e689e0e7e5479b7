from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from redi.core.alignment import Alignment, alignment_loss, normalised
from redi.core.channels import Channels, Vector
from redi.core.objective import JointObjective
from redi.fusion.separate import Separate
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=2, z=3)


def pair(side=4, width=6, n=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, side * side, width, generator=generator), torch.randn(
        n, width, side, side, generator=generator
    )


def test_it_is_the_negative_mean_cosine_token_by_token():
    projected, features = pair()
    total = 0.0
    for sample in range(2):
        for row in range(4):
            for column in range(4):
                a, b = projected[sample, 4 * row + column], features[sample, :, row, column]
                total += float(a @ b / (a.norm() * b.norm()))
    assert float(alignment_loss(projected, features)) == pytest.approx(-total / 32, abs=1e-6)


def test_equal_directions_give_minus_one():
    _, features = pair()
    assert float(alignment_loss(3 * features.flatten(2).mT, features)) == pytest.approx(-1, abs=1e-6)


def test_features_on_another_grid_are_resized_to_the_tokens():
    projected, features = pair(side=2)[0], pair(side=4)[1]
    resized = functional.interpolate(features, (2, 2), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(alignment_loss(projected, features), alignment_loss(projected, resized))


def test_a_normalised_target_is_that_of_the_formula_in_float64():
    features = 3 + pair()[1].double().numpy()
    mean, std = features.mean(axis=(2, 3), keepdims=True), features.std(axis=(2, 3), ddof=1, keepdims=True)
    expected = torch.from_numpy((features - 0.6 * mean) / (std + 1e-6))
    torch.testing.assert_close(normalised(torch.from_numpy(features), 0.6), expected, rtol=1e-12, atol=1e-12)
    projected = pair()[0].double()
    cosine = functional.cosine_similarity(projected, expected.flatten(2).mT, dim=-1)
    found = alignment_loss(projected, torch.from_numpy(features), normalisation=0.6)
    torch.testing.assert_close(found, -cosine.mean(), rtol=1e-12, atol=1e-12)


def test_a_fully_normalised_target_does_not_depend_on_offset_and_scale_of_a_channel():
    projected, features = pair()
    moved = features * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None, None] + torch.arange(6.0)[:, None, None]
    losses = [alignment_loss(projected, part, normalisation=1.0) for part in (features, moved)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment_end_step": -1}, r"JointObjective\.alignment_end_step = -1 must be an integer of at least 0"),
        ({"alignment_end_step": 2.5}, r"JointObjective\.alignment_end_step = 2\.5 must be an integer"),
        ({"alignment_normalisation": 1.1}, r"JointObjective\.alignment_normalisation = 1\.1: must be in \[0, 1\]"),
        ({"alignment_normalisation": float("nan")}, r"JointObjective\.alignment_normalisation = nan: must be in"),
        ({"alignment_loss": "l1"}, r"JointObjective\.alignment_loss = 'l1': must be 'cosine', 'mse' or 'cosine\+mse'"),
        ({"alignment_vectors": True}, r"JointObjective\.alignment_vectors = True: must be False, because no represent"),
        ({"alignment_weight": -0.5}, r"JointObjective\.alignment_weight = -0\.5 must be a finite number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        JointObjective(channels=CHANNELS, num_classes=3, **settings)


def test_the_term_is_on_before_the_end_step_and_never_with_0():
    assert [Alignment(end_step=3).active(step) for step in range(5)] == [True, True, True, False, False]
    assert not Alignment(end_step=0).active(0)
    assert Alignment().active(10**9)


def test_the_other_losses_are_those_of_sfd_token_by_token():
    projected, features = (part.double() for part in pair())
    targets = features.flatten(2).mT
    squared = ((projected - targets) ** 2).sum() / projected.numel()
    both = (squared + alignment_loss(projected, features)) / 2
    torch.testing.assert_close(alignment_loss(projected, features, loss="mse"), squared)
    torch.testing.assert_close(alignment_loss(projected, features, loss="cosine+mse"), both)
    each = alignment_loss(projected, features, per_sample=True, loss="cosine+mse")
    torch.testing.assert_close(each.mean(), both)


def test_vectors_are_the_targets_of_the_first_tokens_in_one_mean_and_are_never_normalised():
    tokens, features = torch.randn(2, 18, 6, generator=torch.Generator().manual_seed(3)), pair()[1]
    vectors = [5 + torch.randn(2, 6), torch.randn(2, 6)]
    cosines = [functional.cosine_similarity(tokens[:, i], vectors[i], dim=-1).mean() for i in range(2)]
    for alpha in (None, 0.6):
        patches = alignment_loss(tokens[:, 2:], features, normalisation=alpha)
        expected = (16 * patches - sum(cosines)) / 18
        found = alignment_loss(tokens, features, normalisation=alpha, vectors=vectors)
        torch.testing.assert_close(found, expected)


def test_the_term_of_several_encoders_is_the_weight_times_the_mean_of_their_losses():
    (a, f), (b, g) = pair(), pair(side=2, width=4)
    term, named = Alignment(weight=0.3)({"alignment_a": a, "alignment_b": b}, {"alignment_a": f, "alignment_b": g})
    assert named == {"alignment_a": alignment_loss(a, f), "alignment_b": alignment_loss(b, g)}
    torch.testing.assert_close(term, 0.3 * (named["alignment_a"] + named["alignment_b"]) / 2)
    term, named = Alignment(weight=0.3)(a, f)
    assert named == {"alignment": alignment_loss(a, f)} and torch.equal(term, 0.3 * alignment_loss(a, f))


def test_a_grid_of_tokens_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="square"):
        alignment_loss(torch.zeros(1, 6, 2), torch.zeros(1, 2, 4, 4))


def model(**settings):
    torch.manual_seed(0)
    defaults = {"channels": CHANNELS, "grid": (8, 8), "num_classes": 3, "width": 16, "depth": 3, "num_heads": 2}
    defaults |= {name: settings.pop(name) for name in [*settings] if name in defaults}
    return DiffusionTransformer(
        **defaults, patch_size=2, alignment_dim=6, alignment_layer=2, alignment_width=20, **settings
    )


@pytest.mark.parametrize("fusion", [{}, {"fusion": Separate}])
def test_the_projection_is_that_of_the_image_tokens_after_the_named_block(fusion):
    net = model(**fusion)
    x, t, y = torch.randn(2, 5, 8, 8), torch.rand(2), torch.tensor([0, 1])
    hidden = []
    net.blocks[1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    prediction, projected = net(x, t, y, align=True)
    assert torch.equal(projected, net.projector(hidden[0][:, :16]))
    assert projected.shape == (2, 16, 6)
    assert torch.equal(prediction, net(x, t, y))


def test_a_layer_that_the_model_has_not_is_refused():
    with pytest.raises(ValueError, match="alignment_layer = 9.*1 ... 3"):
        DiffusionTransformer(
            channels=CHANNELS, grid=(8, 8), num_classes=3, width=16, depth=3, num_heads=2, alignment_dim=6,
            alignment_layer=9,
        )  # fmt: skip


def losses(**settings):
    x, features, y = (
        torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(1)),
        pair(n=4)[1],
        torch.arange(4) % 3,
    )
    objective = JointObjective(channels=CHANNELS, num_classes=3, **settings)
    net = model()
    torch.manual_seed(2)
    found = objective(net, x, y, features)
    found["loss"].backward()
    return found, net


def test_the_objective_adds_the_weighted_alignment():
    half, _ = losses()
    none, _ = losses(alignment_weight=0.0)
    torch.testing.assert_close(half["loss"], none["loss"] + 0.5 * half["alignment"])


def test_the_alignment_trains_the_projector_and_the_blocks_below_it():
    _, net = losses()
    assert all(p.grad.abs().sum() > 0 for p in net.projector.parameters())
    assert net.blocks[1].modulation[1].weight.grad.abs().sum() > 0


def test_without_features_the_projector_is_not_run():
    net = model()
    objective = JointObjective(channels=CHANNELS, num_classes=3)
    assert "alignment" not in objective(net, torch.randn(4, 5, 8, 8), torch.zeros(4, dtype=torch.long))


WITH_CLASS = Channels(image=2, z_class=Vector.on_grid(6, (8, 8)), z=3)


@pytest.mark.parametrize("fusion", [{}, {"fusion": Separate}])
def test_the_tokens_of_vectors_precede_those_of_the_image_on_request(fusion):
    net = model(channels=WITH_CLASS, **fusion)
    x, t, y = torch.randn(2, 6, 8, 8), torch.rand(2), torch.tensor([0, 1])
    hidden = []
    net.blocks[1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    assert torch.equal(net(x, t, y, align="all")[1], net.projector(hidden[0][:, :17]))  # the vector is the first token
    assert torch.equal(net(x, t, y, align=True)[1], net.projector(hidden[0][:, 1:17]))


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_the_clean_vector_is_the_target_of_its_token(rule):
    net, features, y = model(channels=WITH_CLASS), pair()[1], torch.tensor([0, 1])
    x, noise, times = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8), torch.tensor([0.2, 0.7])
    draws = y, times, noise, torch.tensor([True, True])
    settings = {"channels": WITH_CLASS, "num_classes": 3, "dropout_rule": rule, "alignment_vectors": True}
    objective = JointObjective(**settings)
    found = objective.losses(net, x, *draws, alignment=features)
    vector = x[:, 2].flatten(1)[:, :6]
    x_t = times[:, None, None, None] * x + (1 - times)[:, None, None, None] * noise
    if rule == "paper":
        x_t = WITH_CLASS.mask(x_t, draws[-1])
    else:
        x_t = torch.cat([x_t[:, :2], ((1 - times)[:, None, None, None] * noise)[:, 2:]], dim=1)
    expected = alignment_loss(net(x_t, times, y, align="all")[1], features, vectors=[vector])
    torch.testing.assert_close(found["alignment"], expected)
    torch.testing.assert_close(found["loss"] - 0.5 * found["alignment"], objective.losses(net, x, *draws)["loss"])


def test_vectors_that_cannot_be_aligned_are_refused_before_the_first_step():
    codec = SimpleNamespace(
        channels=WITH_CLASS, grid=lambda size: (8, 8), alignments={"alignment": SimpleNamespace(dim=8)}
    )
    objective = JointObjective(channels=WITH_CLASS, num_classes=3, alignment_vectors=True)
    with pytest.raises(
        ValueError, match=r"alignment_vectors = True: z_class has 6 numbers, JointCodec.alignment \[8\]: must"
    ):
        objective.model_arguments(codec, SimpleNamespace(image_size=64, num_classes=3))
    with pytest.raises(ValueError, match=r"DiffusionTransformer cannot project vectors.*alignment_projector = 'mlp'"):
        objective.check_model(model(channels=WITH_CLASS, alignment_projector="conv"))
    objective.check_model(model(channels=WITH_CLASS))
