"""REG's and REGLUE's weights: the imported model and sampler against the published definition, in float64."""

import math

import pytest
import torch
from torch.nn import functional

from redi.core.channels import Channels, Vector
from redi.core.processes import FlowMatching
from redi.core.samplers import EulerMaruyama
from redi.fusion import sincos_positions
from redi.guidance import ClassifierFree, guided
from redi.models.published.parse import parse_layout, published_shapes
from redi.models.published.reg import REGLayout
from redi.models.published.weights import from_published, to_published
from redi.models.transformer import DiffusionTransformer

D, N, HEADS, P, GRID, K, E = 48, 2, 3, 2, 8, 5, 20  # E: length of the class token


def published_state(c: int = 4, *, projector: bool = True) -> dict[str, torch.Tensor]:
    """SiT's state dict with REG's tensors, random, in double precision that float32 holds exactly."""
    g = torch.Generator().manual_seed(c)
    linear = {"x_embedder.proj": (D, c, P, P), "t_embedder.mlp.0": (D, 256), "t_embedder.mlp.2": (D, D)}
    linear["y_embedder.embedding_table"] = (K + 1, D)
    for i in range(N):
        linear |= {f"blocks.{i}.attn.qkv": (3 * D, D), f"blocks.{i}.attn.proj": (D, D)}
        linear |= {f"blocks.{i}.mlp.fc1": (4 * D, D), f"blocks.{i}.mlp.fc2": (D, 4 * D)}
        linear[f"blocks.{i}.adaLN_modulation.1"] = (6 * D, D)
    if projector:
        linear |= {"projectors.0.0": (32, D), "projectors.0.2": (32, 32), "projectors.0.4": (E, 32)}
    linear |= {"final_layer.linear": (P * P * c, D), "final_layer.linear_cls": (E, D)}
    linear |= {"final_layer.adaLN_modulation.1": (2 * D, D), "cls_projectors2": (D, E), "wg_norm": (D,)}
    positions = sincos_positions((GRID // P, GRID // P), D)
    state = {"pos_embed": torch.cat([torch.zeros(1, D), positions])[None]}
    for name, shape in linear.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=g) / math.sqrt(math.prod(shape[1:]) or 1)
        if not name.startswith("y_embedder"):
            state[f"{name}.bias"] = torch.randn(shape[0], generator=g) / 5
    return state


def reference(state, x, cls, t, y):
    """REG's network on the published names: maps (N, C, H, W) and class tokens (N, E) at its time t, noise at 1."""
    w = {name: tensor.double() for name, tensor in state.items()}

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normalised(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    def modulated(h, shift, scale):
        return normalised(h) * (1 + scale[:, None]) + shift[:, None]

    n, side = len(x), x.shape[-1] // P
    patches = functional.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=P)
    first = normalised(linear("cls_projectors2", cls)) * w["wg_norm.weight"] + w["wg_norm.bias"]
    h = torch.cat([first[:, None], patches.flatten(2).transpose(1, 2)], dim=1) + w["pos_embed"]
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)  # in float32, as published
    sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1).double()
    c = linear("t_embedder.mlp.2", functional.silu(linear("t_embedder.mlp.0", sinusoids)))
    c = functional.silu(c + w["y_embedder.embedding_table.weight"][y])
    for i in range(N):
        chunks = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, dim=1)
        qkv = linear(f"blocks.{i}.attn.qkv", modulated(h, *chunks[:2]))
        q, k, v = qkv.view(n, -1, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-2, -1) / math.sqrt(D // HEADS)).softmax(-1) @ v
        h = h + chunks[2][:, None] * linear(f"blocks.{i}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, *chunks[3:5])), approximate="tanh")
        h = h + chunks[5][:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    h = modulated(h, *linear("final_layer.adaLN_modulation.1", c).chunk(2, dim=1))
    maps = linear("final_layer.linear", h[:, 1:]).view(n, side, side, P, P, -1)
    return torch.einsum("nhwpqc->nchpwq", maps).reshape(n, -1, GRID, GRID), linear("final_layer.linear_cls", h[:, 0])


def imported_model(state):
    imported = from_published(state, num_heads=HEADS)
    model = DiffusionTransformer(**imported.runtime, **imported.settings)
    model.load_state_dict(imported.state)
    return model.eval().requires_grad_(False), imported


def joined(channels: Channels, maps, cls):
    """The joint state of maps (N, C, H, W) and class tokens (N, E)."""
    return torch.cat([maps, channels.stored("dinov2_class", cls, (GRID, GRID))], dim=1)


def inputs(c: int, n: int = 3):
    g = torch.Generator().manual_seed(1)
    maps, cls = torch.randn(n, c, GRID, GRID, generator=g).double(), torch.randn(n, E, generator=g).double()
    return maps, cls, torch.tensor([0.0, 0.4171, 1.0])[:n], torch.tensor([0, 3, K])[:n]


@pytest.mark.parametrize("c", [4, 20], ids=["REG", "REGLUE"])
def test_the_imported_model_is_the_published_one(c):
    state = published_state(c)
    model, imported = imported_model(state)
    groups = {"image": 4} | ({"dinov2": 16} if c == 20 else {}) | {"dinov2_class": 1}
    assert model.channels == groups and model.channels.vectors == {"dinov2_class": E}
    assert imported.settings["alignment_layer"] == 2 and imported.runtime["alignment_dim"] == E
    maps, cls, t, y = inputs(c)
    expected = reference(state, maps, cls, t, y)
    assert min(part.std() for part in expected) > 0.5
    out = model.double()(joined(model.channels, maps, cls), t, y)
    assert (out - joined(model.channels, *expected)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("c", [4, 20], ids=["REG", "REGLUE"])
def test_import_and_export_give_every_bit_back(c, dtype):
    state = {name: tensor.to(dtype) for name, tensor in published_state(c).items()}
    model, imported = imported_model(state)
    back = to_published(model, leftovers=imported.leftovers, dtypes=imported.dtypes)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == dtype for name, tensor in state.items())
    assert to_published(model).keys() == state.keys()  # of a model that was trained here


def published_samples(state, noises, labels, *, evaluations, scales, highest):
    """REG's sampler: Euler-Maruyama from time 1 (noise) to 0.04 and one step to 0 without noise, with CFG.

    With w = 2 t the drift is v - w/2 score, where the velocity v = noise - x and the score -(x_t + (1 - t) v) / t.
    """
    times = torch.linspace(1, 0.04, evaluations, dtype=torch.float64).tolist() + [0.0]
    draws = iter(noises)
    state_t = next(draws)
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        drifts = []
        for y in (labels, torch.full_like(labels, K)):
            velocities = reference(state, *state_t, torch.full((len(labels),), t), y)
            scores = [-(x + (1 - t) * v) / t for x, v in zip(state_t, velocities, strict=True)]
            drifts.append([v - t * s for v, s in zip(velocities, scores, strict=True)])
        scales_t = scales if t <= highest else (1, 1)
        drift = [null + s * (full - null) for full, null, s in zip(*drifts, scales_t, strict=True)]
        state_t = [x + (t_next - t) * d for x, d in zip(state_t, drift, strict=True)]
        if t_next:
            size = math.sqrt(2 * t * (t - t_next))
            state_t = [x + size * noise for x, noise in zip(state_t, next(draws), strict=True)]
    return state_t


def test_the_default_sampler_is_the_published_one():
    """The grid of 250 evaluations is 1, ..., 0.04, 0 too; here with 7, at guidance scales of their own."""
    state = published_state(4)
    model, _ = imported_model(state)
    model, channels = model.double(), model.channels
    g = torch.Generator().manual_seed(2)
    shapes = [((2, 4, GRID, GRID), (2, E))] * 7
    noises = [[torch.randn(shape, generator=g, dtype=torch.float64) for shape in pair] for pair in shapes]
    labels = torch.tensor([1, 4])
    expected = published_samples(state, noises, labels, evaluations=7, scales=(2.3, 1.7), highest=0.85)
    process = FlowMatching(reversed=True).for_channels(channels)
    rule = ClassifierFree({"image": 2.3, "dinov2_class": 1.7}, interval=(0.15, 1.0))
    denoise = guided(model, [rule], channels, labels, K, process.model_time)
    draw = (joined(channels, *pair) for pair in noises).__next__
    x = EulerMaruyama(num_evaluations=7)(denoise, process, draw)
    torch.testing.assert_close(x, joined(channels, *expected), rtol=1e-9, atol=1e-9)


def test_the_grid_of_250_evaluations_is_the_published_one():
    expected = [*(1 - torch.linspace(1, 0.04, 250, dtype=torch.float64)).tolist()]
    assert EulerMaruyama(num_evaluations=250).grid(FlowMatching()) == pytest.approx(expected, abs=1e-12)


# Without projectors, counted from the shapes by hand.
@pytest.mark.parametrize(("c", "size"), [(4, "XL/2"), (20, "XL/2"), (4, "B/2")])
def test_parameter_counts_are_those_published(c, size):
    width, depth = {"XL/2": (1152, 28), "B/2": (768, 12)}[size]
    layout = REGLayout(
        width=width, depth=depth, patch_size=2, in_channels=c, out_channels=c, patch_grid=(16, 16), num_classes=1000,
        mlp_hidden=4 * width,
    )  # fmt: skip
    shapes = published_shapes(layout)
    d = width
    sit = 257 * d + 4 * c * d + d + 256 * d + d + d * d + d + 1001 * d  # table, patches, times, labels
    sit += depth * (18 * d * d + 15 * d) + 4 * c * (d + 1) + 2 * d * (d + 1)  # blocks, head, its modulation
    token = 768 * d + d + 2 * d + 768 * (d + 1)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert count == sit + token
    if size == "XL/2":
        assert round(count / 1e6) == 677
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        assert parse_layout(state) == layout and layout.model_settings() == {"size": size}
        model = DiffusionTransformer(channels=layout.channels(), grid=layout.grid, num_classes=1000, size=size)
    assert sum(p.numel() for p in model.parameters()) == count - 257 * d


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


BROKEN = [
    (lambda s: without(s, "wg_norm.bias"), r"lacks wg_norm\.bias"),
    (lambda s: without(s, "final_layer.linear_cls.weight"), r"lacks final_layer\.linear_cls\.weight"),
    (lambda s: without(s, "cls_projectors2.weight"), r"lacks cls_projectors2\.weight"),
    (lambda s: s | {"wg_norm.running_mean": torch.zeros(D)}, "holds wg_norm.running_mean, which no REG or REGLUE has"),
    (lambda s: without(s, "wg_norm.weight"), r"lacks wg_norm\.weight"),
    (lambda s: s | {"pos_embed": s["pos_embed"][:, 1:]}, "has 15 positions: must be a square number"),
    (lambda s: s | {"pos_embed": s["pos_embed"].flip(1)}, "pos_embed differs by up to .* from the fixed table of REG"),
    (lambda s: s | {"final_layer.linear_cls.weight": torch.zeros(9, D)}, r"linear_cls\.weight \(9, 48\) instead of"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_another_layout_is_refused_by_name(spoil, message):
    with pytest.raises(ValueError, match=message):
        from_published(spoil(published_state()), num_heads=HEADS)


def test_a_class_token_of_another_length_is_refused():
    channels = Channels(image=4, dinov2_class=Vector(21, 1))
    with pytest.raises(ValueError, match=r"must have vectors of the lengths \[20\], as the checkpoint does"):
        from_published(published_state(), num_heads=HEADS, channels=channels)
    with pytest.raises(ValueError, match="lengths .20., as the checkpoint does"):
        from_published(published_state(), num_heads=HEADS, channels={"image": 4})


def test_a_model_with_two_vectors_is_not_exported():
    channels = Channels(image=4, one=Vector(5, 1), other=Vector(6, 1))
    model = DiffusionTransformer(channels=channels, grid=(4, 4), num_classes=2, width=16, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="cannot be exported to the published layout because it has 2 vectors"):
        to_published(model)
