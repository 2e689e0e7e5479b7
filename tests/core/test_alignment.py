import pytest
import torch
from torch.nn import functional

from redi.core.alignment import Alignment, alignment_loss, normalised
from redi.core.channels import Channels
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
