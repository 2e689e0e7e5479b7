"""Warm start: at step 0 the joint model predicts the plain model's image for any features."""

from functools import partial

import pytest
import torch

from redi.core.channels import Channels, Vector
from redi.fusion import Separate
from redi.models.blocks import Modern
from redi.models.published.weights import to_published
from redi.models.transformer import DiffusionTransformer
from redi.runtime.checkpoint import Retention, save_checkpoint
from redi.training.warm_start import warm_start

PLAIN = Channels(image=4)
JOINT = Channels(image=4, dinov2=3)


def random_model(channels=PLAIN, seed=0, **settings):
    """Non-zero everywhere."""
    torch.manual_seed(seed)
    arguments = {"grid": (8, 8), "num_classes": 5, "size": "B/2", "width": 32, "depth": 2, "num_heads": 2}
    model = DiffusionTransformer(channels=channels, **arguments | settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval().requires_grad_(False)


def publish(model, path):
    torch.save({"model": {"broken": torch.zeros(1)}, "ema": to_published(model)}, path)
    return path


def as_run(model, folder):
    state = model.state_dict()
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    record = {"model_arguments": {"channels": dict(model.channels), "grid": [8, 8], "num_classes": 5}}
    save_checkpoint(folder, 3, {"model": raw, "ema": state}, record, keep=Retention(1))
    return folder


def states(channels, n=3):
    torch.manual_seed(1)
    return torch.randn(n, channels.total, 8, 8), torch.rand(n), torch.tensor([0, 4, 5])[:n]


@pytest.mark.parametrize("kind", ["published", "run"])
def test_the_image_prediction_is_the_plain_models_for_every_z(tmp_path, kind):
    plain, joint = random_model(), random_model(JOINT, seed=1)
    source = publish(plain, tmp_path / "sit.pt") if kind == "published" else as_run(plain, tmp_path / "run")
    warm_start(joint, source)
    x, t, y = states(JOINT)
    expected = plain(x[:, :4], t, y)
    for scale in (0.0, 1.0, 100.0):
        x[:, 4:] *= scale
        assert torch.equal(joint(x, t, y)[:, :4], expected)
        assert not joint(x, t, y)[:, 4:].any()


def test_a_joint_model_begins_with_the_weights_of_lightningdit(tmp_path):
    plain, joint = random_model(block=Modern), random_model(JOINT, seed=1, block=Modern)
    warm_start(joint, publish(plain, tmp_path / "lightningdit.pt"))
    x, t, y = states(JOINT)
    assert torch.equal(joint(x, t, y)[:, :4], plain(x[:, :4], t, y))
    with pytest.raises(ValueError, match="its blocks are not those of the model"):
        warm_start(random_model(JOINT), tmp_path / "lightningdit.pt")


def test_weights_of_dit_dh_are_taken_with_a_word_on_the_direction_of_time(tmp_path, caplog):
    settings = {"block": Modern, "head_width": 64, "timestep_features": "gaussian"}
    source, model = random_model(**settings), random_model(seed=1, **settings)
    warm_start(model, publish(source, tmp_path / "dit_dh.pt"))
    assert torch.equal(model(*states(PLAIN)), source(*states(PLAIN)))
    assert "set FlowMatching.reversed = True" in caplog.text


def test_a_joint_model_of_fewer_groups_begins_one_of_more(tmp_path):
    more = Channels(image=4, dinov2=3, siglip2=2)
    small, large = random_model(JOINT), random_model(more, seed=1)
    warm_start(large, as_run(small, tmp_path / "run"))
    x, t, y = states(more)
    assert (large(x, t, y)[:, :7] - small(x[:, :7], t, y)).abs().max() < 1e-5  # one more summand: another rounding


def test_a_published_joint_model_is_taken_over_whole(tmp_path):
    source, model = random_model(JOINT), random_model(JOINT, seed=1)
    warm_start(model, publish(source, tmp_path / "redi.pt"))
    x, t, y = states(JOINT)
    assert (model(x, t, y) - source(x, t, y)).abs().max() < 1e-5


def test_a_learned_variance_is_taken_over_for_the_image_and_zero_for_the_rest(tmp_path):
    plain = random_model(variance_groups=("image",))
    joint = random_model(JOINT, seed=1, variance_groups=("image", "dinov2"))
    warm_start(joint, publish(plain, tmp_path / "dit.pt"))
    x, t, y = states(JOINT)
    answer, expected = joint(x, t, y), plain(x[:, :4], t, y)
    assert torch.equal(answer[:, :4], expected[:, :4]) and torch.equal(answer[:, 7:11], expected[:, 4:])
    assert not answer[:, 11:].any()


def test_a_dead_sigma_is_left_out(tmp_path):
    source = random_model(variance_groups=("image",))
    plain = random_model(seed=1)
    warm_start(plain, publish(source, tmp_path / "sit.pt"))
    x, t, y = states(PLAIN)
    assert torch.equal(plain(x, t, y), source(x, t, y)[:, :4])


def test_another_grid_is_fine_for_positions_are_fixed(tmp_path):
    plain, joint = random_model(grid=(4, 4)), random_model(JOINT, seed=1)
    warm_start(joint, publish(plain, tmp_path / "sit.pt"))
    assert torch.equal(joint.blocks[1].qkv.weight, plain.blocks[1].qkv.weight)


def test_projectors_and_the_first_layer_of_group_embeddings_stay_and_nothing_is_drawn(tmp_path):
    projector = {"alignment_dim": 6, "alignment_layer": 1, "alignment_width": 8}
    joint = random_model(JOINT, seed=1, **projector, group_timesteps=True, inner_layer=1)
    before = {name: tensor.clone() for name, tensor in joint.state_dict().items()}
    path = publish(random_model(**projector), tmp_path / "sit.pt")
    state = torch.random.get_rng_state()
    warm_start(joint, path)
    assert torch.equal(torch.random.get_rng_state(), state)
    kept = [name for name in before if torch.equal(before[name], joint.state_dict()[name])]
    assert kept and all(name.startswith(("projector.", "group_embeddings.", "inner_head.")) for name in kept)
    assert len(kept) == 6 + 2 + 2 + 2 * len(JOINT)


def test_the_first_prediction_is_the_source_s_where_every_group_has_a_time_of_its_own(tmp_path):
    plain, joint = random_model(), random_model(JOINT, seed=1, group_timesteps=True)
    warm_start(joint, publish(plain, tmp_path / "sit.pt"))
    x, t, y = states(JOINT)
    times = torch.stack([t, 1 - t], dim=1)
    torch.testing.assert_close(joint(x, times, y)[:, :4], plain(x[:, :4], t, y), rtol=1e-5, atol=1e-5)


def test_a_gradient_reaches_what_began_as_zero(tmp_path):
    joint = random_model(JOINT, seed=1).requires_grad_(True)
    warm_start(joint, publish(random_model(), tmp_path / "sit.pt"))
    x, t, y = states(JOINT)
    joint(x, t, y).sub(1).square().mean().backward()
    assert joint.fusion.heads["dinov2"].weight.grad.any()


HEAD = {"block": Modern, "head_width": 48, "timestep_features": "gaussian"}


@pytest.mark.parametrize("settings", [{"block": Modern}, HEAD], ids=["Modern", "a wide head"])
def test_a_run_with_other_blocks_begins_a_joint_model_of_these_blocks(tmp_path, settings):
    plain, joint = random_model(**settings), random_model(JOINT, seed=1, **settings)
    warm_start(joint, as_run(plain, tmp_path / "run"))
    x, t, y = states(JOINT)
    assert torch.equal(joint(x, t, y)[:, :4], plain(x[:, :4], t, y)) and not joint(x, t, y)[:, 4:].any()


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ({}, {"block": Modern}, r"its blocks are not those of the model \(Modern\): .* DiffusionTransformer.block"),
        ({"block": Modern}, {}, r"not those of the model \(AdaLN\): only one has blocks.0.k_norm.weight"),
        ({"block": Modern}, {"block": partial(Modern, qk_norm=False)}, "only one has blocks.0.k_norm.weight"),
        ({}, {"head_width": 48}, "it has 2 blocks, not 4"),
        ({"depth": 4}, {"head_width": 48}, r"only one has wide_head.to_condition.bias"),
        ({"head_width": 32}, {"depth": 4}, "only one has wide_head.to_condition.bias; .* head_width to the source's"),
        ({}, {"timestep_features": "gaussian"}, r"timestep_embedding.mlp.0.weight is \(32, 256\)"),
        ({}, {"group_timesteps": True, "group_times_by": "concatenation"}, "leaves no room .*: set 'sum'"),
    ],
)
def test_other_blocks_heads_and_times_are_refused(tmp_path, source, settings, message):
    joint = random_model(JOINT, seed=1, **settings)
    before = {name: tensor.clone() for name, tensor in joint.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^train\.initial_weights = .*{message}"):
        warm_start(joint, as_run(random_model(**source), tmp_path / "run"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in joint.state_dict().items())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"num_classes": 7}, "it has 7 classes, but the data have 5"),
        ({"depth": 3}, "it has 3 blocks, not 2: set DiffusionTransformer.depth"),
        ({"width": 64}, r"fusion.embeddings.image.weight is \(64, 4, 2, 2\), but the model's is \(32, 4, 2, 2\)"),
        ({"size": "B/4"}, r"\(32, 4, 4, 4\), but the model's is \(32, 4, 2, 2\).*DiffusionTransformer.size"),
        ({"mlp_ratio": 2.0}, r"blocks.0.mlp.0.\w+ is \(64"),
        ({"channels": Channels(image=3)}, "3 (input )?channels|channels are {'image': 3}"),
        ({"channels": Channels(image=6)}, "6 (input )?channels|channels are {'image': 6}"),
    ],
)
@pytest.mark.parametrize("kind", ["published", "run"])
def test_a_model_of_other_shapes_is_refused(tmp_path, kind, source, message):
    other, joint = random_model(**source), random_model(JOINT, seed=1)
    path = publish(other, tmp_path / "x.pt") if kind == "published" else as_run(other, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in joint.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^train\.initial_weights = .*{message}"):
        warm_start(joint, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in joint.state_dict().items())


def test_separate_tokens_cannot_keep_the_prediction_and_are_refused(tmp_path):
    joint = random_model(JOINT, fusion=Separate)
    with pytest.raises(ValueError, match="fusion = Separate gives each group separate tokens.*set fusion.Merged"):
        warm_start(joint, publish(random_model(), tmp_path / "sit.pt"))


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the folder has no checkpoints of a run; .* is a folder without a file"):
        warm_start(random_model(JOINT), tmp_path)


def test_weights_of_repa_are_taken_with_a_word_on_the_direction_of_time(tmp_path, caplog):
    source = to_published(random_model(alignment_dim=6, alignment_layer=1, alignment_width=8))
    torch.save({name.replace("projector.", "projectors.0."): t for name, t in source.items()}, tmp_path / "repa.pt")
    warm_start(random_model(JOINT), tmp_path / "repa.pt")
    assert "set FlowMatching.reversed = True" in caplog.text


def test_a_new_vector_keeps_its_embedding_and_is_predicted_as_zero(tmp_path):
    joint = random_model(Channels(image=4, dinov2=3, token=Vector(10, channels=1)), seed=1)
    initial = {name: parameter.clone() for name, parameter in joint.named_parameters()}
    source = random_model(JOINT)
    message = warm_start(joint, as_run(source, tmp_path / "run"))
    x, t, y = states(joint.channels)
    assert not joint(x, t, y)[:, 7:].any() and "weights of token set to 0" in message
    for name, parameter in joint.named_parameters():
        expected = initial[name] if "embeddings.token" in name else source.state_dict().get(name)
        assert "heads.token" in name or torch.equal(parameter, expected), name
