"""LightningDiT, SFD and DiT-DH: imported models against the published network, written out on the published names."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional

from redi.core.channels import Channels
from redi.core.clocks import Lead
from redi.core.processes import FlowMatching
from redi.core.processes.clocked import Clocked
from redi.core.samplers import Euler, ImageNoise
from redi.guidance import ClassifierFree, guided
from redi.models.blocks import Modern
from redi.models.published.dit_dh import DiTDH
from redi.models.published.lightningdit import SFD, LightningDiT
from redi.models.published.parse import parse_layout, published_shapes
from redi.models.published.weights import from_published, to_published
from redi.models.transformer import DiffusionTransformer

D, HEADS, SIDE, K, WIDE = 48, 2, 4, 5, 64
HEAD_DIM, HIDDEN, WIDE_HIDDEN = D // HEADS, int(2 / 3 * int(4 * D)), int(2 / 3 * int(4 * WIDE))


def modern_state(
    kind: str, c: int = 6, *, p: int = 1, qk_norm: bool = False, chunks: int = 6, outputs: int = 1
) -> dict:
    """A state dict of 'lightningdit', 'sfd' or 'dit-dh', non-zero everywhere; the tables are computed in float32."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g) / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 25)

    wide, state = kind == "dit-dh", {"pos_embed": positions(D)[None]}
    last = WIDE if wide else D
    linear = {"x_embedder.proj": (last, c, p, p)}
    if wide:
        linear |= {"s_embedder.proj": (D, c, p, p), "s_projector": (WIDE, D)}
        state["t_embedder.W"] = torch.randn(256, generator=g)
    embedders = {"t_embedder_sem": D // 2, "t_embedder_tex": D // 2} if kind == "sfd" else {"t_embedder": D}
    for name, width in embedders.items():
        linear |= {f"{name}.mlp.0": (width, 512 if wide else 256), f"{name}.mlp.2": (width, width)}
    for name, head_dim in {"enc_feat_rope": HEAD_DIM, "dec_feat_rope": WIDE // HEADS}.items():
        if wide or name.startswith("enc"):
            state |= rope(name if wide else "feat_rope", head_dim)
    for i in range(4 if wide else 2):
        d, hidden = (WIDE, WIDE_HIDDEN) if i >= 2 else (D, HIDDEN)
        block, norms = f"blocks.{i}", {"norm1": d, "norm2": d}
        norms |= {"attn.q_norm": d // HEADS, "attn.k_norm": d // HEADS} if qk_norm else {}
        state |= {f"{block}.{name}.weight": 1 + rand(size) for name, size in norms.items()}
        linear |= {f"{block}.attn.qkv": (3 * d, d), f"{block}.attn.proj": (d, d)}
        linear |= {f"{block}.mlp.w12": (2 * hidden, d), f"{block}.mlp.w3": (d, hidden)}
        linear[f"{block}.adaLN_modulation.1"] = (chunks * d, d)
    state["final_layer.norm_final.weight"] = 1 + rand(last)
    linear |= {"final_layer.linear": (p * p * c * outputs, last), "final_layer.adaLN_modulation.1": (2 * last, last)}
    if kind == "sfd":
        linear |= {"repa_projector.0": (32, D), "repa_projector.2": (32, 32), "repa_projector.4": (20, 32)}
    for name, shape in linear.items():
        state |= {f"{name}.weight": rand(*shape), f"{name}.bias": rand(shape[0])}
    return state | {"y_embedder.embedding_table.weight": rand(K + 1, D)}


def positions(d: int) -> torch.Tensor:
    """(T, D): columns in the first half of D, sines before cosines."""
    omega = 10000 ** (-torch.arange(d // 4).double() / (d / 4))
    rows, columns = torch.arange(SIDE * SIDE).div(SIDE, rounding_mode="floor"), torch.arange(SIDE * SIDE) % SIDE
    halves = [torch.outer(p.double(), omega) for p in (columns, rows)]
    return torch.cat([f(h) for h in halves for f in (torch.sin, torch.cos)], dim=1).float()


def rope(name: str, head_dim: int) -> dict:
    omega = 10000 ** (-2 * torch.arange(head_dim // 4).float() / (head_dim // 2))
    rows, columns = torch.arange(SIDE * SIDE).div(SIDE, rounding_mode="floor"), torch.arange(SIDE * SIDE) % SIDE
    angles = torch.cat([torch.outer(p.float(), omega).repeat_interleave(2, 1) for p in (rows, columns)], dim=1)
    return {f"{name}.freqs_cos": angles.cos(), f"{name}.freqs_sin": angles.sin()}


def reference(state: dict, x, t, y):
    """The published network: (N, C, H, W), times (N,), or of SFD {'sem': (N,), 'tex': (N,)} -> (N, O, H, W)."""

    def linear(name, h):
        return functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def rms(name, h):
        return h / (h.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def patches(name):
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, state[f"{name}.bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)

    def time(name, t):
        if "t_embedder.W" in state:
            angles = 2 * math.pi * t[:, None] * state["t_embedder.W"]
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        else:
            angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
            waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return linear(f"{name}.mlp.2", functional.silu(linear(f"{name}.mlp.0", waves.to(x.dtype))))

    def turned(h, name):  # (N, heads, T, head_dim)
        a, b = h.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (state[f"{name}.freqs_{f}"][:, ::2] for f in ("cos", "sin"))
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    def block(i, h, c, table):
        chunks = linear(f"blocks.{i}.adaLN_modulation.1", functional.silu(c))
        chunks = chunks[:, None] if chunks.ndim == 2 else chunks
        parts = chunks.chunk(chunks.shape[-1] // h.shape[-1], dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts if len(parts) == 6 else (0, *parts[:2], 0, *parts[2:])
        qkv = linear(f"blocks.{i}.attn.qkv", rms(f"blocks.{i}.norm1", h) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if f"blocks.{i}.attn.q_norm.weight" in state:
            q, k = rms(f"blocks.{i}.attn.q_norm", q), rms(f"blocks.{i}.attn.k_norm", k)
        weights = (turned(q, table) @ turned(k, table).mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        h = h + gate1 * linear(f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        gate, up = linear(f"blocks.{i}.mlp.w12", rms(f"blocks.{i}.norm2", h) * (1 + scale2) + shift2).chunk(2, dim=-1)
        return h + gate2 * linear(f"blocks.{i}.mlp.w3", functional.silu(gate) * up)

    labels = state["y_embedder.embedding_table.weight"][y]
    if "s_embedder.proj.weight" in state:
        embedded = time("t_embedder", t)
        s, c = patches("s_embedder.proj") + state["pos_embed"], functional.silu(embedded + labels)
        for i in range(2):
            s = block(i, s, c, "enc_feat_rope")
        c, h = linear("s_projector", functional.silu(embedded[:, None] + s)), patches("x_embedder.proj")
        for i in range(2, 4):
            h = block(i, h, c, "dec_feat_rope")
    else:
        separate = isinstance(t, dict)
        times = torch.cat([time(f"t_embedder_{n}", t[n]) for n in ("sem", "tex")], dim=1) if separate else None
        h, c = patches("x_embedder.proj") + state["pos_embed"], labels + (times if separate else time("t_embedder", t))
        for i in range(2):
            h = block(i, h, c, "feat_rope")
    ends = linear("final_layer.adaLN_modulation.1", functional.silu(c))
    shift, scale = (ends[:, None] if ends.ndim == 2 else ends).chunk(2, dim=-1)
    out = linear("final_layer.linear", rms("final_layer.norm_final", h) * (1 + scale) + shift)
    p = state["x_embedder.proj.weight"].shape[-1]
    out = out.unflatten(1, (SIDE, SIDE)).unflatten(-1, (p, p, -1))  # (N, h, w, p, q, O)
    return out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


CASES = {
    "LightningDiT": ("lightningdit", {}),
    "QK-norm": ("lightningdit", {"qk_norm": True}),
    "patch 2, discarded sigma": ("lightningdit", {"p": 2, "outputs": 2}),
    "without shift": ("lightningdit", {"chunks": 4}),
    "SFD": ("sfd", {"qk_norm": True}),
    "DiT-DH": ("dit-dh", {}),
}
GROUPS = {"sfd": Channels(image=4, dinov2=2)}


def imported_model(state, kind):
    imported = from_published(state, channels=GROUPS.get(kind))
    model = DiffusionTransformer(**imported.runtime, **imported.settings)
    model.load_state_dict(imported.state)
    return model.eval().requires_grad_(False), imported


def inputs(state, kind):
    torch.manual_seed(1)
    x = torch.randn(3, 6, *2 * [SIDE * state["x_embedder.proj.weight"].shape[-1]])
    texture, semantic = torch.tensor([0.0, 0.4171, 1.0]), torch.tensor([0.1, 0.7, 1.0])
    t = (torch.stack([texture, semantic], 1), {"sem": semantic, "tex": texture}) if kind == "sfd" else (texture,) * 2
    return x, *t, torch.tensor([0, 3, K])


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_the_imported_model_is_the_published_one(kind, options):
    state = modern_state(kind, **options)
    model, imported = imported_model(state, kind)
    x, t, their_t, y = inputs(state, kind)
    exact = {name: tensor.double() for name, tensor in state.items()}
    their_t = {n: v.double() for n, v in their_t.items()} if kind == "sfd" else their_t.double()
    expected = reference(exact, x.double(), their_t, y)[:, :6]
    assert expected.std() > 0.5
    # Waves and rotations are float32: about 10 roundings at sizes of up to 15.
    assert (model.double()(x.double(), t, y) - expected).abs().max() < 2e-5
    assert imported.layout.num_heads == HEADS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_import_and_export_give_every_bit_back(kind, options, dtype):
    state = {name: tensor.to(dtype) for name, tensor in modern_state(kind, **options).items()}
    model, imported = imported_model(state, kind)
    back = to_published(model, leftovers=imported.leftovers, dtypes=imported.dtypes)
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == dtype and torch.equal(back[name], tensor), name


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_a_model_trained_here_has_the_published_names(kind, options):
    state = modern_state(kind, **options)
    model, _ = imported_model(state, kind)
    written = to_published(model)
    assert set(written) == set(state) and parse_layout(written).block_settings() == parse_layout(state).block_settings()


SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16), "1p0B": (1536, 24, 24)}
COUNTS = [
    (LightningDiT, "B", 32, 130_556_192),
    (LightningDiT, "L", 32, 458_152_960),
    (LightningDiT, "XL", 32, 675_256_736),
    (SFD, "B", 48, 130_287_408),
    (SFD, "L", 48, 457_664_528),
    (SFD, "XL", 48, 674_634_096),
    (SFD, "1p0B", 48, 1_028_273_712),
    (DiTDH, "XL", 768, 838_675_796),
]


@pytest.mark.parametrize(("kind", "size", "c", "count"), COUNTS)
def test_parameter_counts_are_those_published(kind, size, c, count):
    width, depth, heads = SIZES[size]
    head = {"head_num_heads": 16} if kind is DiTDH else {}
    layout = kind(
        width=width, depth=depth, patch_size=1, in_channels=c, out_channels=c, patch_grid=(16, 16), num_classes=1000,
        mlp_hidden=int(2 / 3 * 4 * width), num_heads=heads, qk_norm=kind is SFD, **head,
    )  # fmt: skip
    shapes = {n: s for n, s in published_shapes(layout).items() if "freqs" not in n}
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    assert layout.model_settings()["size"] == f"{size}/1" and "mlp_ratio" not in layout.model_settings()


def test_tables_of_another_rotation_are_refused():
    state = modern_state("lightningdit")
    with pytest.raises(ValueError, match=r"feat_rope.freqs_sin differs by up to .* from the fixed table of Lightning"):
        from_published(state | {"feat_rope.freqs_sin": -state["feat_rope.freqs_sin"]})
    with pytest.raises(ValueError, match=r"heads of width 20: must divide the model's width 48"):
        from_published(state | rope("feat_rope", 20))


def test_without_tables_and_norms_the_number_of_heads_is_an_argument():
    state = {n: t for n, t in modern_state("lightningdit").items() if "freqs" not in n}
    with pytest.raises(ValueError, match=r"number of heads is unknown"):
        from_published(state)
    imported = from_published(state, num_heads=HEADS)
    model = DiffusionTransformer(**imported.runtime, **imported.settings)
    assert list(to_published(model, imported.state, dtypes=imported.dtypes)) == list(state)


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


REFUSED = [
    ("lightningdit", lambda s: without(s, "norm1"), r"lacks blocks\.0\.norm1\.weight.*with other norms"),
    *(
        (name, change, rf"{what} of {title}, so import all of its file and nothing else")
        for name, title in {"lightningdit": "LightningDiT", "sfd": "SFD", "dit-dh": "DiT-DH"}.items()
        for change, what in (
            (lambda s: s | {"extra.weight": torch.zeros(2)}, r"holds extra\.weight, which no .*tensors are those"),
            (lambda s: without(s, "blocks.0.attn.proj"), r"lacks blocks\.0\.attn\.proj\.weight.*tensors are those"),
        )
    ),
    ("lightningdit", lambda s: s | {"blocks.0.attn.q_norm.bias": torch.zeros(HEAD_DIM)}, r"q_norm\.bias.*LayerNorm"),
    ("lightningdit", lambda s: s | {"blocks.0.mlp.w1.weight": torch.zeros(2, 2)}, r"w1\.weight.*RAEv2"),
    ("lightningdit", lambda s: s | {"t_embedder.W": torch.zeros(256)}, r"RAE's plain DiT"),
    ("lightningdit", lambda s: s | {"in_context_posemb": torch.zeros(1, 32, D)}, r"JiT or RiT"),
    ("sfd", lambda s: s | {"clock.slopes": torch.zeros(8)}, r"holds clock\.slopes, which no SFD has.*LWD"),
    ("sfd", lambda s: without(s, "t_embedder_tex.mlp.2"), r"lacks t_embedder_tex\.mlp\.2\.weight"),
    ("dit-dh", lambda s: without(s, "s_projector"), r"lacks s_projector\.weight"),
    (
        "dit-dh",
        lambda s: s | {"s_projector.weight": torch.zeros(D, WIDE)},
        r"s_projector\.weight \(48, 64\) instead of",
    ),
]


@pytest.mark.parametrize(("kind", "spoil", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_be_read_is_refused_with_the_reason(kind, spoil, message):
    with pytest.raises(ValueError, match=message):
        from_published(spoil(modern_state(kind, qk_norm=kind == "sfd")), channels=GROUPS.get(kind))


def test_channels_of_sfd_are_texture_first():
    state = modern_state("sfd", 40)
    assert from_published(state).runtime["channels"] == {"image": 32, "dinov2": 8}
    with pytest.raises(ValueError, match="6 input channels, not 32 of the texture"):
        from_published(modern_state("sfd"))
    with pytest.raises(ValueError, match=r"of SFD, which has one representation, but .* Channels\(image=40\)"):
        from_published(state, channels={"image": 40})


@pytest.mark.parametrize(
    "settings", [{"block": partial(Modern, rotary=False)}, {"block": partial(Modern, norm="layer")}]
)
def test_another_block_has_no_published_layout(settings):
    model = DiffusionTransformer(channels=Channels(image=2), grid=(4, 4), num_classes=2, depth=1, **settings)
    with pytest.raises(ValueError, match="cannot be exported .* has Modern blocks with options that no published"):
        to_published(model)


def test_a_guided_trajectory_of_lightningdit_is_that_of_a_loop():
    """Three channels are guided, from t = 0.1 on; the grid is 0.3 t / (1 - 0.7 t)."""
    state, y = modern_state("lightningdit"), torch.tensor([1, 4])
    model, imported = imported_model(state, "lightningdit")
    rules = [ClassifierFree(scale=10.0, channels={"image": 3}, interval=(0.1, 1.0))]
    denoise = guided(model, rules, imported.runtime["channels"], y, K, FlowMatching().model_time)
    drawn = Euler(num_evaluations=7, shift=1 / 0.3)(denoise, FlowMatching(), ImageNoise(0, [0, 1], (6, SIDE, SIDE)))
    x, times = ImageNoise(0, [0, 1], (6, SIDE, SIDE))(), torch.linspace(0, 1, 8)
    times = 0.3 * times / (1 - 0.7 * times)
    for t, t_next in zip(times, times[1:], strict=False):
        v, null = reference(state, x, t.repeat(2), y), reference(state, x, t.repeat(2), torch.full_like(y, K))
        if t >= 0.1:
            v = torch.cat([(null + 10 * (v - null))[:, :3], v[:, 3:]], dim=1)
        x = x + (t_next - t) * v
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()


def test_a_trajectory_of_sfd_is_that_of_a_loop_with_masked_velocities():
    """Own times of both groups from the global tau in [0, 1.3]; a group whose time is 0 or 1 stands still."""
    state, y = modern_state("sfd", qk_norm=True), torch.tensor([1, 4])
    model, imported = imported_model(state, "sfd")
    channels = imported.runtime["channels"]
    process = Clocked(FlowMatching(), Lead(0.3)).for_channels(channels)
    denoise = guided(model, [], channels, y, K, process.model_time)
    drawn = Euler(num_evaluations=13)(denoise, process, ImageNoise(0, [0, 1], (6, SIDE, SIDE)))
    x = ImageNoise(0, [0, 1], (6, SIDE, SIDE))()
    for step in range(13):
        own = {"sem": min(step / 10, 1.0), "tex": max(step / 10 - 0.3, 0.0)}
        v = reference(state, x, {name: torch.full((2,), s) for name, s in own.items()}, y)
        x = torch.cat([x[:, :4] + (step >= 3) * 0.1 * v[:, :4], x[:, 4:] + (step < 10) * 0.1 * v[:, 4:]], dim=1)
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()


def test_a_trajectory_of_dit_dh_runs_down_its_own_time():
    state, y = modern_state("dit-dh"), torch.tensor([1, 4])
    model, imported = imported_model(state, "dit-dh")
    process = FlowMatching(reversed=True)
    denoise = guided(model, [], imported.runtime["channels"], y, K, process.model_time)
    drawn = Euler(num_evaluations=8, shift=3.0)(denoise, process, ImageNoise(0, [0, 1], (6, SIDE, SIDE)))
    x, noise_time = ImageNoise(0, [0, 1], (6, SIDE, SIDE))(), torch.linspace(1, 0, 9)
    noise_time = 3 * noise_time / (1 + 2 * noise_time)
    for t, t_next in zip(noise_time, noise_time[1:], strict=False):
        x = x + (t_next - t) * reference(state, x, t.repeat(2), y)
    assert (drawn - x).abs().max() < 1e-4 * x.abs().max()
