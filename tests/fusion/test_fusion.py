import copy

import pytest
import torch
from torch.nn.functional import conv2d

from redi.core.channels import Channels, Vector
from redi.core.registry import registries
from redi.fusion import Fusion, sincos_positions
from redi.fusion.merged import Merged, with_one_bias
from redi.fusion.separate import Separate

STRATEGIES = list(registries["fusion"].values())
GROUPS = [{}, {"a": 5}, {"a": 5, "b": 1}, {"a": 5, "b": 1, "c": 2}]
GRID, PATCH, WIDTH = (4, 6), 2, 16
NUM_PATCHES = 6


def build(strategy: type[Fusion], groups: dict[str, int], **overrides) -> Fusion:
    """A fusion with random parameters, because heads are initialized with 0."""
    settings = {"channels": Channels(image=3, **groups), "grid": GRID, "patch_size": PATCH, "width": WIDTH}
    fusion = strategy(**settings | overrides)
    torch.manual_seed(0)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return fusion


def state(fusion: Fusion, n: int = 2) -> torch.Tensor:
    return torch.randn(n, fusion.channels.total, *GRID, generator=torch.Generator().manual_seed(1))


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
any_number_of_groups = pytest.mark.parametrize("groups", GROUPS, ids=len)


@every_strategy
@any_number_of_groups
def test_embed_gives_num_tokens_tokens_of_the_model_width(strategy, groups):
    fusion = build(strategy, groups)
    tokens = fusion.embed(state(fusion))
    assert tokens.shape == (2, fusion.num_tokens, WIDTH)
    assert tokens.dtype == torch.float32


@every_strategy
@any_number_of_groups
def test_unembed_gives_back_the_shape_of_the_joint_state(strategy, groups):
    fusion = build(strategy, groups)
    x = state(fusion)
    assert fusion.unembed(fusion.embed(x)).shape == x.shape


@every_strategy
@any_number_of_groups
def test_gradient_reaches_every_parameter_and_the_state(strategy, groups):
    fusion = build(strategy, groups)
    x = state(fusion).requires_grad_()
    fusion.unembed(fusion.embed(x)).square().sum().backward()
    for name, tensor in [*fusion.named_parameters(), ("x", x)]:
        assert tensor.grad.abs().min() > 0, name


@every_strategy
@any_number_of_groups
def test_state_dict_round_trip_is_exact_and_holds_no_positions(strategy, groups):
    fusion = build(strategy, groups)
    other = strategy(channels=fusion.channels, grid=GRID, patch_size=PATCH, width=WIDTH)
    other.load_state_dict(fusion.state_dict(), strict=True)
    x = state(fusion)
    assert torch.equal(other.unembed(other.embed(x)), fusion.unembed(fusion.embed(x)))
    assert not any("position" in key for key in fusion.state_dict())


@every_strategy
def test_a_new_strategy_predicts_zero(strategy):
    fusion = strategy(channels=Channels(image=3, a=5), grid=GRID, patch_size=PATCH, width=WIDTH)
    assert not fusion.unembed(fusion.embed(state(fusion))).any()


@every_strategy
def test_a_patch_size_that_does_not_divide_the_grid_is_refused(strategy):
    with pytest.raises(ValueError, match="patch_size = 4: must divide both sides of the latent grid 4x6"):
        build(strategy, {}, patch_size=4)


@every_strategy
def test_each_group_is_predicted_in_its_own_channels(strategy):
    fusion = build(strategy, {"a": 5, "b": 1})
    for name, head in fusion.heads.items():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, {"image": 1.0, "a": 2.0, "b": 3.0}[name])
    prediction = fusion.unembed(fusion.embed(state(fusion)))
    assert torch.equal(prediction[0, :, 0, 0], torch.tensor([1.0] * 3 + [2.0] * 5 + [3.0]))


@any_number_of_groups
def test_merged_has_one_token_per_patch(groups):
    assert build(Merged, groups).num_tokens == NUM_PATCHES


@any_number_of_groups
def test_separate_has_one_token_per_patch_and_group(groups):
    assert build(Separate, groups).num_tokens == NUM_PATCHES * (1 + len(groups))


@pytest.mark.parametrize("groups", GROUPS[1:], ids=len)
def test_merged_tokens_are_the_sum_of_the_groups_embeddings(groups):
    fusion = build(Merged, groups)
    x = state(fusion)
    expected = sum(fusion.embed_group(name, x[:, fusion.channels.slice(name)]) for name in fusion.channels)
    torch.testing.assert_close(fusion.embed(x), expected + fusion.positions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", GROUPS[1:], ids=len)
def test_merged_embedding_is_one_convolution_of_all_channels(groups):
    fusion = build(Merged, groups).double()
    x = state(fusion).double()
    kernel = torch.cat([embedding.weight for embedding in fusion.embeddings.values()], dim=1)
    bias = fusion.embeddings["image"].bias
    expected = conv2d(x, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2) + fusion.positions
    torch.testing.assert_close(fusion.embed(x), expected, rtol=1e-12, atol=1e-12)


@any_number_of_groups
def test_merged_tokens_have_one_bias_and_separate_ones_one_per_group(groups):
    def biases(fusion):
        return [name for name, _ in fusion.embeddings.named_parameters() if name.endswith("bias")]

    assert biases(build(Merged, groups)) == ["image.bias"]
    assert biases(build(Separate, groups)) == [f"{name}.bias" for name in ("image", *groups)]


def test_both_strategies_begin_with_the_same_random_numbers():
    states = []
    for strategy in (Merged, Separate):
        torch.manual_seed(0)
        fusion = strategy(channels=Channels(image=3, a=5), grid=GRID, patch_size=PATCH, width=WIDTH)
        states.append((fusion.state_dict(), torch.rand(3)))
    (merged, after), (separate, after_separate) = states
    assert torch.equal(after, after_separate)
    assert all(torch.equal(tensor, separate[name]) for name, tensor in merged.items())


def as_before(state: dict) -> dict:
    """A state dict with one bias per group, as in older versions: those of `a` and `b` add to that of the image."""
    older = {f"embeddings.{name}.bias": torch.full((WIDTH,), value) for name, value in (("a", 0.5), ("b", -0.25))}
    return older | state | {"embeddings.image.bias": state["embeddings.image.bias"] - 0.25}


def test_a_state_dict_with_a_bias_for_every_group_loads_as_their_sum():
    fusion = build(Merged, {"a": 5, "b": 1})
    other = copy.deepcopy(fusion)
    torch.nn.init.zeros_(other.embeddings["image"].bias)
    older = as_before(fusion.state_dict())
    names = list(older)
    other.load_state_dict(older)
    assert list(older) == names  # the argument is not modified
    x = state(fusion)
    torch.testing.assert_close(other.embed(x), fusion.embed(x), rtol=1e-6, atol=1e-6)


def test_of_a_checkpoint_weights_and_averages_are_summed_and_moments_kept():
    names = dict(build(Merged, {"a": 5}).named_parameters())
    one, old = "embeddings.image.bias", "embeddings.a.bias"
    groups = {
        "model": {one: torch.ones(2), old: torch.ones(2)},
        "averages": {f"sigma/{one}": torch.ones(2), f"sigma/{old}": torch.ones(2)},
        "optimizer": {f"{one}/exp_avg": torch.ones(2), f"{old}/exp_avg": torch.ones(2)},
    }
    result = with_one_bias(groups, names)
    assert {name: [(key, tensor[0].item()) for key, tensor in group.items()] for name, group in result.items()} == {
        "model": [(one, 2.0)], "averages": [(f"sigma/{one}", 2.0)], "optimizer": [(f"{one}/exp_avg", 1.0)],
    }  # fmt: skip
    assert with_one_bias(groups, dict(build(Separate, {"a": 5}).named_parameters())) == groups


def test_merged_heads_are_one_linear_layer_in_row_column_channel_order():
    """The published head, row (i p + j) C + c, splits exactly into one head per group."""
    fusion = build(Merged, {"a": 5}).double()
    joint_weight = torch.cat([h.weight.view(PATCH * PATCH, -1, WIDTH) for h in fusion.heads.values()], dim=1)
    joint_bias = torch.cat([h.bias.view(PATCH * PATCH, -1) for h in fusion.heads.values()], dim=1)
    tokens = torch.randn(2, NUM_PATCHES, WIDTH, dtype=torch.float64)
    rows = tokens @ joint_weight.flatten(0, 1).T + joint_bias.flatten()  # (N, P, p p C)
    expected = torch.einsum("nhwpqc->nchpwq", rows.view(2, 2, 3, PATCH, PATCH, 8)).reshape(2, 8, *GRID)
    torch.testing.assert_close(fusion.unembed(tokens), expected, rtol=1e-12, atol=1e-12)


def test_separate_tokens_are_the_groups_sequences_one_after_the_other():
    fusion = build(Separate, {"a": 5, "b": 1})
    x = state(fusion)
    for k, name in enumerate(fusion.channels):
        own = fusion.embed(x)[:, k * NUM_PATCHES : (k + 1) * NUM_PATCHES]
        expected = fusion.embed_group(name, x[:, fusion.channels.slice(name)]) + fusion.positions
        assert torch.equal(own, expected)


def test_each_separate_head_reads_only_its_own_tokens():
    fusion = build(Separate, {"a": 5, "b": 1})
    tokens = torch.randn(1, fusion.num_tokens, WIDTH, requires_grad=True)
    for k, name in enumerate(fusion.channels):
        own = fusion.unembed(tokens)[:, fusion.channels.slice(name)]
        (gradient,) = torch.autograd.grad(own.sum(), tokens)
        reached = gradient[0].abs().amax(dim=1).view(-1, NUM_PATCHES) > 0  # (groups, P)
        assert reached[k].all()
        assert reached.sum() == NUM_PATCHES


@pytest.mark.parametrize("group", ["image", "a", "b"])
def test_every_merged_head_reads_every_token(group):
    fusion = build(Merged, {"a": 5, "b": 1})
    tokens = torch.randn(1, fusion.num_tokens, WIDTH, requires_grad=True)
    own = fusion.unembed(tokens)[:, fusion.channels.slice(group)]
    (gradient,) = torch.autograd.grad(own.sum(), tokens)
    assert (gradient.abs().amax(dim=2) > 0).all()


def test_without_representations_both_strategies_agree():
    merged, separate = build(Merged, {}), build(Separate, {})
    separate.load_state_dict(merged.state_dict())
    x = state(merged)
    assert torch.equal(merged.embed(x), separate.embed(x))
    assert torch.equal(merged.unembed(merged.embed(x)), separate.unembed(separate.embed(x)))


@every_strategy
def test_token_k_holds_patch_k_counted_along_the_rows(strategy):
    fusion = build(strategy, {})
    x = state(fusion, n=1)
    before = fusion.embed(x)
    for k in range(NUM_PATCHES):
        row, column = divmod(k, 3)
        changed = x.clone()
        changed[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
        moved = (fusion.embed(changed) - before)[0].abs().amax(dim=1) > 1e-4
        assert moved.nonzero().tolist() == [[k]]


@every_strategy
@pytest.mark.parametrize("group", ["image", "a"])
def test_head_row_is_patch_row_then_patch_column_then_channel(strategy, group):
    fusion = build(strategy, {"a": 5})
    head, size = fusion.heads[group], fusion.channels[group]
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.arange(size * PATCH**2).float()
    own = fusion.unembed(torch.zeros(1, fusion.num_tokens, WIDTH))[0, fusion.channels.slice(group)]
    for i in range(GRID[0]):
        for j in range(GRID[1]):
            first = ((i % PATCH) * PATCH + j % PATCH) * size
            assert own[:, i, j].tolist() == list(range(first, first + size))


@pytest.mark.parametrize(("side", "width"), [(2, 8), (16, 384), (7, 12)])
def test_positions_agree_with_diffusers(side, width):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt").float()
    torch.testing.assert_close(sincos_positions((side, side), width), expected, rtol=1e-5, atol=1e-6)


def test_positions_of_a_rectangle_encode_the_column_first_and_the_row_second():
    table = sincos_positions((2, 5), 8).view(2, 5, 8).double()
    for row in range(2):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = place * torch.tensor([1.0, 0.01], dtype=torch.float64)
                expected += [angles.sin(), angles.cos()]
            torch.testing.assert_close(table[row, column], torch.cat(expected), rtol=1e-6, atol=1e-7)


def test_no_two_positions_are_alike():
    distances = torch.cdist(*[sincos_positions((16, 16), 64)] * 2)
    assert distances.fill_diagonal_(1).min() > 0.1


# Vectors

VECTORS = {
    "a": 5,
    "token": Vector(20, channels=1),
    "other": Vector(30, channels=2),
}  # 24 positions: 4 and 18 of padding


def padding(fusion: Fusion, x: torch.Tensor) -> torch.Tensor:
    """Ones in the padding of vectors, zeros elsewhere."""
    return 1 - fusion.channels.trim(torch.ones_like(x))


@every_strategy
def test_every_vector_is_one_token_and_the_first_ones_of_the_sequence(strategy):
    fusion, maps = build(strategy, VECTORS), build(strategy, {"a": 5})
    assert fusion.num_tokens == maps.num_tokens + 2
    x, embedding = state(fusion), fusion.embeddings["token"]
    numbers = x[:, 8].flatten(1)[:, :20]
    linear = numbers @ embedding[0].weight.T + embedding[0].bias
    normed = (linear - linear.mean(1, keepdim=True)) / (linear.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    expected = normed * embedding[1].weight + embedding[1].bias
    torch.testing.assert_close(fusion.embed(x)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert not fusion.coordinates[:2].any() and len(fusion.coordinates) == fusion.num_tokens


@every_strategy
def test_tokens_of_maps_do_not_change_with_a_vector(strategy):
    fusion, maps = build(strategy, VECTORS), build(strategy, {"a": 5})
    maps.load_state_dict({name: fusion.state_dict()[name] for name in maps.state_dict()})
    x = state(fusion)
    assert torch.equal(fusion.embed(x)[:, 2:], maps.embed(x[:, :8]))
    tokens = fusion.embed(x)
    assert torch.equal(fusion.unembed(tokens)[:, :8], maps.unembed(tokens[:, 2:]))


@every_strategy
def test_padding_is_neither_read_nor_predicted(strategy):
    fusion = build(strategy, VECTORS, variance_groups=("image", "token"))
    x = state(fusion).requires_grad_()
    prediction = fusion.unembed(tokens := fusion.embed(x))
    assert torch.equal(fusion.embed(x + 7 * padding(fusion, x)), tokens)
    assert not (prediction[:, :11] * padding(fusion, x)).any()
    assert prediction.shape[1] == 11 + 3 + 1 and not prediction[:, 14].flatten(1)[:, 20:].any()
    prediction.square().sum().backward()
    assert ((x.grad == 0) == (padding(fusion, x) == 1)).all()


@every_strategy
def test_the_head_of_a_vector_reads_its_token_alone(strategy):
    fusion = build(strategy, VECTORS)
    tokens = torch.randn(1, fusion.num_tokens, WIDTH, requires_grad=True)
    for i, name in enumerate(("token", "other")):
        own = fusion.unembed(tokens)[:, fusion.channels.slice(name)]
        (gradient,) = torch.autograd.grad(own.sum(), tokens)
        assert (gradient[0].abs().amax(dim=1) > 0).nonzero().tolist() == [[i]]
