import math
from functools import partial

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, silu

from redi.core.channels import Channels
from redi.fusion import fusions
from redi.models.blocks import Modern
from redi.models.projector import build_projector
from redi.models.sizes import SIZES
from redi.models.timesteps import TimestepEmbedding
from redi.models.transformer import DiffusionTransformer

CHANNELS = Channels(image=3, a=5)
GRID = (4, 6)


def tiny(*, random: bool = True, **overrides) -> DiffusionTransformer:
    """Two blocks of width 32; `random` fills every parameter, for the initial model predicts 0."""
    torch.manual_seed(0)
    settings = {"size": "S/2", "width": 32, "depth": 2, "num_heads": 4, "channels": CHANNELS, "grid": GRID}
    model = DiffusionTransformer(**settings | {"num_classes": 10} | overrides)
    if random:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(n: int = 3, *, channels: int = CHANNELS.total, dtype=torch.float32):
    """x (N, C, H, W), t (N,), y (N,)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, *GRID, generator=generator, dtype=dtype)
    return x, torch.rand(n, generator=generator, dtype=dtype), torch.arange(n) % 11


def on_meta(size: str, *, image: int, **groups: int) -> DiffusionTransformer:
    with torch.device("meta"):
        channels = Channels(image=image, **groups)
        return DiffusionTransformer(channels=channels, grid=(32, 32), num_classes=1000, size=size)


# The published checkpoints hold the position table as a parameter (256 x D), which is a buffer here, and one bias of
# the patch embedding for all channels, where we have one per group (one more D). Everything else is the same.
@pytest.mark.parametrize(("size", "published"), [("B/2", 130_549_296), ("L/2", 458_151_984), ("XL/2", 675_184_944)])
def test_parameter_count_is_the_published_one_less_positions(size, published):
    width = SIZES[size.partition("/")[0]][0]
    count = sum(p.numel() for p in on_meta(size, image=4, dinov2=8).parameters())
    assert count == published - 256 * width


LIGHTNING = partial(Modern, qk_norm=False)
SFD = {"block": Modern, "group_timesteps": True, "group_times_by": "concatenation"}


# These counts include the position table, as above.
@pytest.mark.parametrize(
    ("size", "groups", "settings", "published"),
    [
        ("B/1", {"image": 32}, {"block": LIGHTNING}, 130_556_192),
        ("L/1", {"image": 32}, {"block": LIGHTNING}, 458_152_960),
        ("XL/1", {"image": 32}, {"block": LIGHTNING}, 675_256_736),
        ("B/1", {"image": 32, "dinov2": 16}, SFD, 130_287_408),
        ("L/1", {"image": 32, "dinov2": 16}, SFD, 457_664_528),
        ("XL/1", {"image": 32, "dinov2": 16}, SFD, 674_634_096),
        ("1p0B/1", {"image": 32, "dinov2": 16}, SFD, 1_028_273_712),
        (
            "XL/1", {"image": 768}, {"block": LIGHTNING, "head_width": 2048, "timestep_features": "gaussian"},
            838_675_796,
        ),
    ],
)  # fmt: skip
def test_modern_parameter_counts_are_the_published_ones(size, groups, settings, published):
    with torch.device("meta"):
        model = DiffusionTransformer(
            channels=Channels(**groups), grid=(16, 16), num_classes=1000, size=size, **settings
        )
    assert sum(p.numel() for p in model.parameters()) == published - model.fusion.positions.numel()


def test_the_projector_of_sfd_has_the_published_size():
    with torch.device("meta"):
        projector = build_projector("mlp", 1152, 2048, 768, (16, 16))
    assert sum(p.numel() for p in projector.parameters()) == 8_131_328


@pytest.mark.parametrize(("size", "millions"), [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_baseline_sizes_are_those_of_table_1_of_dit(size, millions):
    assert sum(p.numel() for p in on_meta(size, image=4).parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_size_overrides_replace_only_their_own_part():
    model = DiffusionTransformer(channels=CHANNELS, grid=(8, 8), num_classes=2, size="S/4", width=24, depth=3)
    assert (len(model.blocks), model.blocks[0].qkv.in_features) == (3, 24)
    assert (model.blocks[0].num_heads, model.fusion.patch_size) == (6, 4)


@pytest.mark.parametrize("fusion", fusions.values())
def test_untrained_model_predicts_exactly_zero(fusion):
    x, t, y = batch()
    prediction = tiny(random=False, fusion=fusion)(x, t, y)
    assert prediction.shape == x.shape
    assert not prediction.any()


def test_untrained_blocks_are_the_identity():
    tokens, condition = torch.randn(2, 7, 32), torch.randn(2, 32)
    for block in tiny(random=False).blocks:
        assert torch.equal(block(tokens, condition), tokens)


def reference(weights, x, t, y, *, depth: int, heads: int, p: int, scale: float = 1.0):
    """Merged tokens, adaLN-zero blocks and one head per group, in loops and plain matrix products."""
    n, _, height, width = x.shape
    dim = weights["fusion.embeddings.image.weight"].shape[0]

    def linear(name, value):
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(tokens, shift, scale):
        return layer_norm(tokens, (dim,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    corners = [(i, j) for i in range(0, height, p) for j in range(0, width, p)]
    tokens = torch.stack([position(i // p, j // p, dim).expand(n, dim) for i, j in corners], 1)
    for name, channels in (("image", slice(0, 3)), ("a", slice(3, 8))):
        kernel = weights[f"fusion.embeddings.{name}.weight"]
        patches = torch.stack([x[:, channels, i : i + p, j : j + p].flatten(1) for i, j in corners], 1)
        tokens = tokens + patches @ kernel.flatten(1).T
    tokens = tokens + weights["fusion.embeddings.image.bias"]  # one for the sum
    angles = scale * t[:, None] * 10000.0 ** (-torch.arange(128, dtype=x.dtype) / 128)
    hidden = silu(linear("timestep_embedding.mlp.0", torch.cat([angles.cos(), angles.sin()], 1)))
    condition = silu(linear("timestep_embedding.mlp.2", hidden) + weights["label_embedding.weight"][y])
    for k in range(depth):
        parts = linear(f"blocks.{k}.modulation.1", condition).split(dim, 1)
        q, key, v = linear(f"blocks.{k}.qkv", normed(tokens, parts[0], parts[1])).split(dim, 2)
        attended = []
        for part in torch.arange(dim).split(dim // heads):
            scores = q[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(dim // heads)
            attended.append(scores.softmax(2) @ v[..., part])
        tokens = tokens + parts[2][:, None] * linear(f"blocks.{k}.projection", torch.cat(attended, 2))
        hidden = gelu(linear(f"blocks.{k}.mlp.0", normed(tokens, parts[3], parts[4])), approximate="tanh")
        tokens = tokens + parts[5][:, None] * linear(f"blocks.{k}.mlp.2", hidden)
    tokens = normed(tokens, *linear("final_modulation.1", condition).split(dim, 1))
    out = torch.zeros_like(x)
    for name, start, size in (("image", 0, 3), ("a", 3, 5)):
        patches = linear(f"fusion.heads.{name}", tokens)
        for token, (i, j) in enumerate(corners):
            for row in range(p):
                for column in range(p):
                    first = (row * p + column) * size
                    out[:, start : start + size, i + row, j + column] = patches[:, token, first : first + size]
    return out


def position(row: int, column: int, dim: int) -> torch.Tensor:
    quarter = [10000.0 ** (-k / (dim / 4)) for k in range(dim // 4)]
    halves = [[f(place * w) for f in (math.sin, math.cos) for w in quarter] for place in (column, row)]
    return torch.tensor(halves[0] + halves[1], dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 999.0])
def test_forward_agrees_with_an_independent_float64_version(scale):
    model = tiny(timestep_scale=scale).double()
    x, t, y = batch(dtype=torch.float64)
    expected = reference(model.state_dict(), x, t, y, depth=2, heads=4, p=2, scale=scale)
    # The sinusoids and the position table are float32: 999 t is known to 999 * 2^-24 = 6e-5 radians.
    torch.testing.assert_close(model(x, t, y), expected, rtol=2e-6 * scale, atol=2e-6 * scale)
    assert expected.std() > 0.1


def test_float32_agrees_with_float64():
    x, t, y = batch()
    expected = tiny().double()(x.double(), t.double(), y)
    torch.testing.assert_close(tiny()(x, t, y).double(), expected, rtol=1e-4, atol=1e-4)


def test_timestep_sinusoids_are_cosines_then_sines_of_falling_frequency():
    embedding = TimestepEmbedding(256, scale=999.0)
    embedding.mlp = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False))
    torch.nn.init.eye_(embedding.mlp[0].weight)
    t = torch.tensor([0.0, 0.25, 1.0])
    got = embedding(t)
    for k in (0, 1, 64, 127):
        angle = 999.0 * t.double() * 10000.0 ** (-k / 128)
        # float32: the angle, up to 999, is known to 6e-5
        torch.testing.assert_close(got[:, k].double(), angle.cos(), rtol=0, atol=2e-4)
        torch.testing.assert_close(got[:, 128 + k].double(), angle.sin(), rtol=0, atol=2e-4)


def test_timestep_embedding_agrees_with_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    embedding = TimestepEmbedding(256)
    embedding.mlp = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False))
    torch.nn.init.eye_(embedding.mlp[0].weight)
    t = torch.linspace(0, 1, 11)
    expected = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(embedding(t), expected, rtol=1e-6, atol=1e-6)


def test_samples_of_a_batch_do_not_see_each_other():
    model = tiny().double()
    x, t, y = batch(4, dtype=torch.float64)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(x, t, y), alone, rtol=1e-12, atol=1e-12)


def test_without_positions_moving_whole_patches_moves_the_prediction_with_them():
    model = tiny().double()
    x, t, y = batch(dtype=torch.float64)
    moved = x.roll((2, -2), dims=(2, 3))
    assert not torch.allclose(model(moved, t, y), model(x, t, y).roll((2, -2), dims=(2, 3)), atol=1e-2)
    model.fusion.positions.zero_()
    torch.testing.assert_close(model(moved, t, y), model(x, t, y).roll((2, -2), dims=(2, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fusion", fusions.values())
def test_label_and_timestep_matter_after_a_few_steps(fusion):
    model = tiny(random=False, fusion=fusion)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, t, y = batch(8)
    target = torch.randn_like(x) + y[:, None, None, None] - 3 * t[:, None, None, None]
    for _ in range(50):
        loss = (model(x, t, y) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(x, t, y) - model(x, t, (y + 5) % 11)).abs().max() > 0.1
        assert (model(x, t, y) - model(x, 1 - t, y)).abs().max() > 0.1


@pytest.mark.parametrize("fusion", fusions.values())
def test_gradient_reaches_every_parameter(fusion):
    model = tiny(fusion=fusion)
    x, t, _ = batch(11)
    model(x, t, torch.arange(11)).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A key bias adds one constant to all scores of a query, which softmax ignores: thirds q, k, v.
        parts = parameter.grad.chunk(3)[::2] if name.endswith("qkv.bias") else [parameter.grad]
        assert all(part.abs().max() > 1e-6 for part in parts), name


def test_state_dict_holds_parameters_alone_and_no_positions():
    model = tiny()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_state_dict_round_trip_gives_the_same_prediction():
    model, other = tiny(), tiny(random=False)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(*batch()), model(*batch()))


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_choose_attention_puts_the_named_backend_into_every_block(backend):
    model = tiny(attention=backend)
    expected = tiny()(*batch())
    assert model.choose_attention("cpu", torch.float32).startswith(f"{backend} (as bound; cpu, float32, ")
    assert {block.attend.__name__ for block in model.blocks} == {f"attend_{backend}"}
    torch.testing.assert_close(model(*batch()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["M/2", "B", "B/", "B/0", "B/x", "B/-2", "b/2", ""])
def test_an_unknown_size_is_refused_with_the_known_ones(size):
    with pytest.raises(ValueError, match="DiffusionTransformer.size = .*S, B, L, XL.*B/2"):
        tiny(size=size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "num_heads = 5: must divide the width 32"),
        ({"patch_size": 3}, "patch_size = 3: must divide both sides of the latent grid 4x6"),
        ({"width": 30, "num_heads": 3}, "width = 30: must be a multiple of 4"),
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
        ({"num_heads": -4}, "num_heads = -4: must be at least 1"),
        ({"patch_size": 0}, "patch_size = 0: must be at least 1"),
        ({"fusion": DiffusionTransformer}, "DiffusionTransformer.fusion must be one of fusion"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_learned_variances_come_after_the_joint_prediction_in_the_order_of_their_groups():
    model = tiny(variance_groups=("image", "a"))
    x, t, y = batch()
    prediction = model(x, t, y)
    assert prediction.shape == (3, 2 * CHANNELS.total, *GRID)
    heads, variances = model.fusion.heads, model.fusion.variance_heads
    for name in CHANNELS:  # with equal heads the second half repeats the first
        variances[name].load_state_dict(heads[name].state_dict())
    first, second = model(x, t, y).chunk(2, dim=1)
    assert torch.equal(first, second)


def test_a_variance_may_be_learned_for_some_groups_only():
    assert tiny(variance_groups=("a",))(*batch()).shape[1] == CHANNELS.total + 5


@pytest.mark.parametrize("fusion", fusions.values())
def test_variance_heads_change_nothing_in_the_prediction(fusion):
    plain, with_variance = tiny(fusion=fusion), tiny(fusion=fusion, variance_groups=("image",))
    with_variance.load_state_dict(plain.state_dict(), strict=False)
    x, t, y = batch()
    assert torch.equal(with_variance(x, t, y)[:, : CHANNELS.total], plain(x, t, y))


def test_a_model_that_is_told_every_group_s_time_uses_each():
    model = tiny(group_timesteps=True)
    x, _, y = batch()
    times = torch.full((3, 2), 0.3)
    base = model(x, times, y)
    assert torch.equal(base, model(x, torch.full((3,), 0.3), y))  # one time is everyone's
    for column in range(2):
        other = times.clone()
        other[:, column] = 0.8
        assert not torch.allclose(model(x, other, y), base, atol=1e-3)


def test_another_model_reads_the_image_s_time():
    model = tiny()
    x, t, y = batch()
    assert torch.equal(model(x, torch.stack([t, 1 - t], dim=1), y), model(x, t, y))


def test_every_bias_of_a_fresh_model_is_zero():
    model = tiny(random=False, group_timesteps=True, alignment_dim=6, alignment_layer=1, alignment_width=8)
    assert all(not tensor.any() for name, tensor in model.named_parameters() if name.endswith("bias"))


def test_one_time_for_all_may_be_a_number():
    model = tiny()
    x, _, y = batch()
    expected = model(x, torch.full((3,), 0.3), y)
    for t in (0.3, torch.tensor(0.3)):
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-5, atol=1e-5)


def test_tokens_for_alignment_need_a_projector():
    model = tiny(alignment_layer=1)
    x, t, y = torch.randn(1, model.channels.total, *model.grid), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"DiffusionTransformer\.alignment_dim = None: must be set"):
        model(x, t, y, align=True)
