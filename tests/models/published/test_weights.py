"""Published weights: the imported model against the published definition, written out in plain torch on their names."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from redi.core.processes import DDPM, FlowMatching
from redi.core.samplers import Ancestral, Euler, EulerMaruyama, ImageNoise
from redi.fusion import Separate
from redi.guidance import ClassifierFree, RepresentationGuidance, guided
from redi.models.published.layout import Layout
from redi.models.published.parse import parse_layout, published_shapes
from redi.models.published.weights import from_published, to_published
from redi.models.transformer import DiffusionTransformer

D, N, HEADS, P, GRID, K, HIDDEN = 48, 2, 3, 2, 8, 5, 96


def published_state(c: int = 12, o: int = 12, *, d: int = D, projectors: tuple[str, ...] = (), seed: int = 0) -> dict:
    """A state dict as the facts on the published artefacts list it, in their order, non-zero everywhere."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
        return torch.randn(shape, generator=g) / math.sqrt(fan_in)

    state = {"pos_embed": sincos(GRID // P, d)[None].float()}
    linear = {"x_embedder.proj": (d, c, P, P), "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    linear["y_embedder.embedding_table"] = (K + 1, d)
    for i in range(N):
        linear |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        linear |= {f"blocks.{i}.mlp.fc1": (HIDDEN, d), f"blocks.{i}.mlp.fc2": (d, HIDDEN)}
        linear[f"blocks.{i}.adaLN_modulation.1"] = (6 * d, d)
    linear |= {"final_layer.linear": (P * P * o, d), "final_layer.adaLN_modulation.1": (2 * d, d)}
    for prefix in projectors:
        linear |= {f"{prefix}0": (32, d), f"{prefix}2": (32, 32), f"{prefix}4": (20, 32)}
    for name, shape in linear.items():
        state[f"{name}.weight"] = rand(*shape)
        if not name.startswith("y_embedder"):
            state[f"{name}.bias"] = rand(shape[0])
    return state


def sincos(side: int, d: int) -> torch.Tensor:
    """(T, D) float64: columns in the first half of D, sines before cosines."""
    omega = 1 / 10000 ** (np.arange(d // 4) / (d / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    halves = [np.concatenate([np.sin(np.outer(p, omega)), np.cos(np.outer(p, omega))], 1) for p in (columns, rows)]
    return torch.from_numpy(np.concatenate(halves, 1))


def reference(state: dict, x, t, y):
    """The published network on the published names: (N, C, H, W) -> (N, O, H, W)."""

    def linear(name, h):
        return functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(h, shift, scale):
        return functional.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    n, side = len(x), x.shape[-1] // P
    h = functional.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=P)
    h = h.flatten(2).transpose(1, 2) + state["pos_embed"]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = t.float()[:, None] * frequencies[None]
    sinusoids = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).to(x.dtype)
    c = linear("t_embedder.mlp.2", functional.silu(linear("t_embedder.mlp.0", sinusoids)))
    c = c + state["y_embedder.embedding_table.weight"][y]
    for i in range(N):
        chunks = linear(f"blocks.{i}.adaLN_modulation.1", functional.silu(c)).chunk(6, dim=1)
        qkv = linear(f"blocks.{i}.attn.qkv", modulated(h, chunks[0], chunks[1]))
        q, k, v = qkv.reshape(n, -1, 3, HEADS, h.shape[-1] // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        attended = (weights @ v).transpose(1, 2).reshape(h.shape)
        h = h + chunks[2].unsqueeze(1) * linear(f"blocks.{i}.attn.proj", attended)
        hidden = functional.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, chunks[3], chunks[4])), approximate="tanh")
        h = h + chunks[5].unsqueeze(1) * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", functional.silu(c)).chunk(2, dim=1)
    out = linear("final_layer.linear", modulated(h, shift, scale))
    out = out.reshape(n, side, side, P, P, -1)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(n, -1, side * P, side * P)


def imported_model(state, **settings):
    imported = from_published(state, num_heads=HEADS, **settings)
    model = DiffusionTransformer(**imported.runtime, **imported.settings)
    model.load_state_dict(imported.state)
    return model.eval().requires_grad_(False), imported


def inputs(c: int, n: int = 3, *, steps: bool = False):
    torch.manual_seed(1)
    t = torch.tensor([0.0, 417.0, 999.0]) if steps else torch.tensor([0.0, 0.4171, 1.0])
    return torch.randn(n, c, GRID, GRID), t[:n], torch.tensor([0, 3, K])[:n]


CASES = {
    "SiT without sigma": (4, 4, False, ()),
    "SiT with a dead sigma": (4, 8, False, ()),
    "DiT with a learned variance": (4, 8, True, ()),
    "ReDi": (12, 12, False, ()),
    "ReDi with a dead sigma": (12, 24, False, ()),
    "ReDi in the DiT framework": (12, 24, True, ()),
    "ReDi with a REPA loss": (12, 24, False, ("projector.",)),
    "REPA": (4, 8, False, ("projectors.0.", "projectors.1.")),
}


@pytest.mark.parametrize(("c", "o", "variance", "projectors"), CASES.values(), ids=CASES)
def test_the_imported_model_is_the_published_one(c, o, variance, projectors):
    state = published_state(c, o, projectors=projectors)
    model, _ = imported_model(state, learned_variance=variance)
    x, t, y = inputs(c, steps=variance)
    expected = reference(state, x, t, y)[:, : None if variance else c]
    assert expected.std() > 0.5
    assert (model(x, t, y) - expected).abs().max() < 2e-5  # about 100 roundings of values of size 4
    exact = {name: tensor.double() for name, tensor in state.items()}
    expected = reference(exact, x.double(), t, y)[:, : None if variance else c]
    assert (model.double()(x.double(), t, y) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("c", "o", "variance", "projectors"), CASES.values(), ids=CASES)
def test_import_and_export_give_every_bit_back(c, o, variance, projectors, dtype):
    state = {name: tensor.to(dtype) for name, tensor in published_state(c, o, projectors=projectors).items()}
    state["x_embedder.proj.bias"][0] = -0.0
    state["pos_embed"][0, 3, 5] *= 1 + torch.finfo(dtype).eps  # a table computed elsewhere
    model, imported = imported_model(state, learned_variance=variance)
    back = to_published(model, leftovers=imported.leftovers, dtypes=imported.dtypes)
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == dtype and torch.equal(bits(back[name]), bits(tensor)), name


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def test_a_model_trained_here_is_written_in_the_published_order():
    state = published_state(12, 12)
    model, _ = imported_model(state)
    for name, parameter in model.named_parameters():
        if name.startswith("fusion.embeddings") and name.endswith("bias"):
            parameter.normal_()
    written = to_published(model)
    assert list(written) == list(state) and len(written) == 8 + 10 * N + 4
    x, t, y = inputs(12)
    assert (reference(written, x, t, y) - model(x, t, y)).abs().max() < 2e-5


def test_a_state_dict_without_a_position_table_needs_its_grid():
    """The table is fixed: model and export are the same, but for the table that was not there."""
    state = published_state(12, 12)
    stored = {name: tensor for name, tensor in state.items() if name != "pos_embed"}
    with pytest.raises(ValueError, match=r"has no pos_embed.*pass grid=\(32, 32\) for 256 pixels"):
        from_published(stored, num_heads=HEADS)
    model, imported = imported_model(stored, grid=(GRID, GRID))
    other, _ = imported_model(state, grid=(2, 2))  # which the stored table overrules
    x, t, y = inputs(12)
    assert torch.equal(model(x, t, y), other(x, t, y))
    back = to_published(model, leftovers=imported.leftovers, dtypes=imported.dtypes)
    assert list(back) == list(stored) and all(torch.equal(back[name], stored[name]) for name in stored)


def test_weights_of_another_name_set_are_written_in_place_of_the_models_own():
    model, _ = imported_model(published_state(12, 12))
    other = published_state(12, 12, seed=7)
    average = from_published(other, num_heads=HEADS).state
    assert torch.equal(to_published(model, average)["blocks.1.attn.qkv.weight"], other["blocks.1.attn.qkv.weight"])


PUBLISHED_COUNTS = [
    ("XL/2", 1152, 28, 24, 675_240_288),
    ("XL/2", 1152, 28, 12, 675_184_944),
    ("B/2", 768, 12, 12, 130_549_296),
    ("L/2", 1024, 24, 12, 458_151_984),
]


@pytest.mark.parametrize(("size", "width", "depth", "o", "count"), PUBLISHED_COUNTS)
def test_sizes_and_parameter_counts_are_those_published(size, width, depth, o, count):
    layout = Layout(
        width=width, depth=depth, patch_size=2, in_channels=12, out_channels=o, patch_grid=(16, 16), num_classes=1000,
        mlp_hidden=4 * width,
    )  # fmt: skip
    shapes = published_shapes(layout)
    assert len(shapes) == 8 + 10 * depth + 4
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        model = DiffusionTransformer(
            channels=layout.channels(), grid=layout.grid, num_classes=1000, **parse_layout(state).model_settings()
        )
    assert parse_layout(state) == layout and layout.model_settings() == {"size": size}
    # Ours has neither the fixed table nor the rows of the sigma.
    dead = (o - 12) * 4 * (width + 1)
    assert sum(p.numel() for p in model.parameters()) == count - 256 * width - dead


def test_everything_is_inferred_from_the_shapes():
    layout = parse_layout(published_state(12, 24, projectors=("projectors.0.", "projectors.1.")))
    assert (layout.width, layout.depth, layout.patch_size, layout.mlp_hidden) == (D, N, P, HIDDEN)
    assert (layout.grid, layout.num_classes, layout.learn_sigma) == ((GRID, GRID), K, True)
    assert layout.channels() == {"image": 4, "dinov2": 8}
    assert layout.projectors == ("projectors.0.", "projectors.1.")
    assert layout.model_settings(HEADS)["mlp_ratio"] == HIDDEN / D


def test_heads_of_64_are_assumed_where_the_width_is_of_no_published_size():
    assert parse_layout(published_state(d=128)).model_settings()["num_heads"] == 2
    with pytest.raises(ValueError, match=r"number of heads is unknown.*width 48.*num_heads="):
        from_published(published_state())


def rename(state, old, new):
    return {name.replace(old, new): tensor for name, tensor in state.items()}


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


BROKEN = [
    (
        lambda s: without(s, "blocks.1.mlp.fc2.bias"),
        r"lacks blocks\.1\.mlp\.fc2\.bias: the other tensors are those of DiT or SiT",
    ),
    (lambda s: s | {"final_layer.linear.weight": torch.zeros(46, D)}, r"head has 46 rows for 2x2 patches of 12"),
    (
        lambda s: s | {"final_layer.linear.weight": torch.zeros(4 * 36, D)},
        "144 rows.*must have 48, or 96 with learn_sigma",
    ),
    (
        lambda s: s | {"blocks.1.attn.qkv.weight": torch.zeros(3 * 40, D)},
        r"blocks\.1\.attn\.qkv\.weight \(120, 48\) inst",
    ),
    (lambda s: s | {"pos_embed": torch.zeros(1, 16, D)}, r"pos_embed differs by up to 1 from the fixed table of DiT"),
    (lambda s: s | {"pos_embed": torch.zeros(1, 20, D)}, "20 positions: must be a square"),
    (lambda s: rename(s, "blocks.", "transformer_blocks."), "lacks blocks.0.*looks like a transformer of diffusers"),
    (lambda s: s | {"decoder_embed.weight": torch.zeros(2)}, "holds decoder_embed.weight, which no .*masked variant"),
    (lambda s: rename(s, "mlp.fc1", "mlp.w12"), r"lacks blocks\.0\.norm1\.weight.*looks like LightningDiT with other"),
    (lambda s: s | {"blocks.0.norm1.weight": torch.zeros(D)}, "norm1.weight, which no DiT or SiT .*learned norms"),
    (lambda s: s | {"projector.0.weight": torch.zeros(8, D)}, "lacks projector.0.bias, .* and 2 more"),
    (lambda s: {"fusion.embeddings.image.weight": torch.zeros(1)}, "this library's own model: open .* redi.load"),
    (lambda s: {"encoder.conv_in.weight": torch.zeros(1)}, "looks like an autoencoder"),
    (lambda s: s | {"pos_embed": torch.zeros(16)}, r"pos_embed of shape \(16,\): must have 3"),
    (
        lambda s: s | {"y_embedder.embedding_table.weight": torch.zeros(6, 40)},
        r"embedding_table\.weight \(6, 40\) instead",
    ),
    (
        lambda s: {name: t.double() for name, t in s.items()},
        "holds pos_embed: float64, .*: must be float32, float16, bfloat16",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_another_layout_is_refused_by_name(spoil, message):
    with pytest.raises(ValueError, match=message):
        from_published(spoil(published_state()), num_heads=HEADS)


def test_weights_that_are_not_finite_are_refused():
    state = published_state()
    state["blocks.1.attn.proj.bias"][2] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values in blocks\.1\.attn\.proj\.bias"):
        from_published(state, num_heads=HEADS)


def test_channels_that_mean_nothing_by_themselves_must_be_named():
    state = published_state(3, 3)
    with pytest.raises(ValueError, match="3 input channels.*: name the groups with channels="):
        from_published(state, num_heads=HEADS)
    assert from_published(state, num_heads=HEADS, channels={"image": 3}).runtime["channels"] == {"image": 3}
    with pytest.raises(ValueError, match=r"Channels\(image=4\) has 4 channels: must have 3"):
        from_published(state, num_heads=HEADS, channels={"image": 4})


def test_a_variance_that_is_not_there_cannot_be_learned():
    with pytest.raises(ValueError, match="and no learned variance: pass learned_variance=False"):
        from_published(published_state(4, 4), num_heads=HEADS, learned_variance=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": Separate}, "Separate tokens"),
        ({"group_timesteps": True}, "the time of every group"),
        ({"inner_layer": 1}, "an inner head"),
        ({"alignment_dim": 6, "alignment_layer": 1, "alignment_projector": "conv"}, "a convolution"),
        ({"alignment_dim": {"alignment_a": 6, "alignment_b": 6}, "alignment_layer": 1}, "several projectors"),
    ],
)
def test_a_model_without_a_place_in_the_layout_is_not_exported(settings, message):
    imported = from_published(published_state(), num_heads=HEADS)
    model = DiffusionTransformer(**imported.runtime, **imported.settings, **settings)
    with pytest.raises(ValueError, match=f"cannot be exported to the published layout because .*{message}"):
        to_published(model)


# Guidance and sampling: this library's engine on the imported model against loops on the reference.


RULES = {
    "none": ([], lambda full, null, blind: full),
    "VAE-only CFG": (
        [ClassifierFree(scale=2.4)],
        lambda full, null, blind: torch.cat([(null + 2.4 * (full - null))[:, :4], full[:, 4:]], dim=1),
    ),
    "CFG on both streams": (
        [ClassifierFree(scale=1.5, groups=("image", "dinov2"))],
        lambda full, null, blind: null + 1.5 * (full - null),
    ),
    "RG": (
        [RepresentationGuidance(scale=1.5)],
        lambda full, null, blind: torch.cat([(blind + 1.5 * (full - blind))[:, :4], full[:, 4:]], dim=1),
    ),
}


def guided_reference(state, combine, y):
    def evaluate(x, t):
        times = torch.full((len(x),), float(t))
        blind = x.clone()
        blind[:, 4:] = 0
        null = torch.full_like(y, K)
        return combine(*(reference(state, a, times, b)[:, :12] for a, b in ((x, y), (x, null), (blind, y))))

    return evaluate


@pytest.mark.parametrize("rules", RULES)
def test_a_guided_trajectory_of_the_sde_is_that_of_a_loop_on_the_reference(rules):
    state, y = published_state(12, 24), torch.tensor([1, 4])
    model, imported = imported_model(state)
    rule, combine = RULES[rules]
    denoise = guided(model, rule, imported.runtime["channels"], y, K, FlowMatching().model_time)
    drawn = EulerMaruyama(num_evaluations=6)(denoise, FlowMatching(), ImageNoise(0, [0, 1], (12, GRID, GRID)))

    draw, velocity = ImageNoise(0, [0, 1], (12, GRID, GRID)), guided_reference(state, combine, y)
    x, last = draw(), 0.04
    dt = (1 - last) / 5
    for step in range(6):
        t = step * dt
        v = velocity(x, t)
        score = -(x - t * v) / (1 - t)  # x_t - t v is the noise, of standard deviation 1 - t
        x = x + (last if step == 5 else dt) * (v + (1 - t) * score)
        if step < 5:
            x = x + math.sqrt(2 * (1 - t) * dt) * draw()
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()


def test_a_trajectory_of_the_ode_is_that_of_a_loop_on_the_reference():
    state, y = published_state(4, 8), torch.tensor([1, 4])
    model, imported = imported_model(state)
    denoise = guided(model, [], imported.runtime["channels"], y, K, FlowMatching().model_time)
    drawn = Euler(num_evaluations=8)(denoise, FlowMatching(), ImageNoise(0, [0, 1], (4, GRID, GRID)))
    x = ImageNoise(0, [0, 1], (4, GRID, GRID))()
    for step in range(8):
        x = x + reference(state, x, torch.full((2,), step / 8), y)[:, :4] / 8
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()


def test_repa_counts_time_from_data_and_its_velocity_has_the_other_sign():
    # v_sit(x, t) = -v_repa(x, 1 - t)
    state, y = published_state(4, 8, projectors=("projectors.0.",)), torch.tensor([1, 4])
    model, imported = imported_model(state)
    process = FlowMatching(reversed=True)
    denoise = guided(model, [], imported.runtime["channels"], y, K, process.model_time)
    drawn = Euler(num_evaluations=8)(denoise, process, ImageNoise(0, [0, 1], (4, GRID, GRID)))
    x = ImageNoise(0, [0, 1], (4, GRID, GRID))()
    for step in range(8):
        t = 1 - step / 8  # REPA's own time, running down from noise to data
        x = x - reference(state, x, torch.full((2,), t), y)[:, :4] / 8
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()


def test_a_respaced_ancestral_trajectory_of_dit_is_that_of_a_loop_on_the_reference():
    state, y = published_state(4, 8), torch.tensor([1, 4])
    model, imported = imported_model(state, learned_variance=True)
    process = DDPM().for_channels(imported.runtime["channels"])
    denoise = guided(model, [ClassifierFree(scale=1.5)], imported.runtime["channels"], y, K, process.model_time)
    drawn = Ancestral(num_evaluations=5)(denoise, process, ImageNoise(0, [0, 1], (4, GRID, GRID)))

    kept = np.linspace(0, 999, 5).round().astype(int)
    remaining = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[kept]
    before = np.append(1.0, remaining[:-1])
    beta = 1 - remaining / before
    draw = ImageNoise(0, [0, 1], (4, GRID, GRID))
    x = draw()
    for i in reversed(range(5)):
        t = torch.full((2,), float(kept[i]))
        full, null = reference(state, x, t, y), reference(state, x, t, torch.full_like(y, K))
        noise, share = null[:, :4] + 1.5 * (full - null)[:, :4], (full[:, 4:] + 1) / 2
        data = (x - math.sqrt(1 - remaining[i]) * noise) / math.sqrt(remaining[i])
        x = (
            math.sqrt(before[i]) * beta[i] / (1 - remaining[i]) * data
            + math.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - remaining[i]) * x
        )
        if i > 0:
            low = math.log(beta[i] * (1 - before[i]) / (1 - remaining[i]))
            x = x + ((share * math.log(beta[i]) + (1 - share) * low) / 2).exp() * draw()
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()
