"""The block of LightningDiT, compared with its equations in float64, one token and one head at a time."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import silu

from redi.models.attention import BACKENDS, TOLERANCES, attend_math, problem_of
from redi.models.blocks import Modern
from redi.models.rotary import rotation_table

WIDTH, HEADS, GRID = 24, 3, (2, 3)  # heads of 8 numbers: two pairs for the row, two for the column
COORDINATES = [(0, 0), *((i, j) for i in range(GRID[0]) for j in range(GRID[1]))]  # a vector, then the grid


def block_of(dtype=torch.float64, **settings) -> Modern:
    torch.manual_seed(0)
    block = Modern(width=WIDTH, num_heads=HEADS, **settings).to(dtype)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def inputs(dtype=torch.float64, *, per_token: bool = False):
    generator = torch.Generator().manual_seed(1)
    shape = (2, len(COORDINATES), WIDTH)
    tokens = torch.randn(shape, generator=generator, dtype=dtype)
    condition = torch.randn(shape if per_token else (2, WIDTH), generator=generator, dtype=dtype)
    return tokens, condition, rotation_table(torch.tensor(COORDINATES), WIDTH // HEADS)


def normed(x, weight, *, rms: bool):
    """One vector."""
    if not rms:
        x = x - x.mean()
    return x / (x.square().mean() + 1e-6).sqrt() * (1.0 if weight is None else weight)


def turned(x, row: int, column: int):
    """One head: pairs of adjacent numbers, the first half by the row and the second by the column."""
    out, half = torch.empty_like(x), len(x) // 2
    for first, place in ((0, row), (half, column)):
        for k in range(half // 2):
            angle = torch.tensor(place * 10000 ** (-2 * k / half), dtype=torch.float64)
            a, b = x[first + 2 * k], x[first + 2 * k + 1]
            out[first + 2 * k] = a * angle.cos() - b * angle.sin()
            out[first + 2 * k + 1] = a * angle.sin() + b * angle.cos()
    return out


def reference(weights, tokens, condition, *, norm="rms", mlp="swiglu", rotary=True, qk_norm=True, shift=True):
    rms, size = norm == "rms", WIDTH // HEADS

    def linear(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def attended(q, keys, values):
        scores = torch.stack([q @ key / math.sqrt(size) for key in keys]).exp()
        return sum(score * value for score, value in zip(scores / scores.sum(), values, strict=True))

    def head(x, name, place):
        x = normed(x, weights.get(f"{name}.weight"), rms=rms) if qk_norm else x
        return turned(x, *place) if rotary else x

    def perceptron(x):
        if mlp == "swiglu":
            gate, up = linear("mlp.w12", x).chunk(2)
            return linear("mlp.w3", silu(gate) * up)
        hidden = linear("mlp.0", x)
        tanh = (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh()
        return linear("mlp.2", 0.5 * hidden * (1 + tanh))

    out = torch.empty_like(tokens)
    for n, sample in enumerate(tokens):
        conditions = condition[n].expand(len(sample), -1)
        parts = [linear("modulation.1", silu(c)).split(WIDTH) for c in conditions]
        if not shift:
            zero = torch.zeros(WIDTH, dtype=tokens.dtype)
            parts = [(zero, scale1, gate1, zero, scale2, gate2) for scale1, gate1, scale2, gate2 in parts]
        qkv = []
        for x, (shift1, scale1, *_) in zip(sample, parts, strict=True):
            x = normed(x, weights.get("norm1.weight"), rms=rms) * (1 + scale1) + shift1
            qkv.append([part.split(size) for part in linear("qkv", x).split(WIDTH)])
        for i, x in enumerate(sample):
            _, _, gate1, shift2, scale2, gate2 = parts[i]
            heads = []
            for h in range(HEADS):
                q = head(qkv[i][0][h], "q_norm", COORDINATES[i])
                keys = [head(k[h], "k_norm", place) for (_, k, _), place in zip(qkv, COORDINATES, strict=True)]
                heads.append(attended(q, keys, [v[h] for _, _, v in qkv]))
            x = x + gate1 * linear("projection", torch.cat(heads))
            hidden = normed(x, weights.get("norm2.weight"), rms=rms) * (1 + scale2) + shift2
            out[n, i] = x + gate2 * perceptron(hidden)
    return out


OPTIONS = {
    "SFD": {}, "LightningDiT": {"qk_norm": False}, "no rotation": {"rotary": False}, "no shift": {"shift": False},
    "layer norm": {"norm": "layer"}, "GELU": {"mlp": "gelu"},
    "DiT": {"norm": "layer", "mlp": "gelu", "rotary": False, "qk_norm": False},
}  # fmt: skip


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_the_block_is_that_of_the_equations(settings):
    block, (tokens, condition, rotation) = block_of(**settings), inputs()
    expected = reference(block.state_dict(), tokens, condition, **settings)
    # The table of rotations is in float32.
    torch.testing.assert_close(block(tokens, condition, rotation), expected, rtol=1e-6, atol=1e-6)
    assert (expected - tokens).std() > 0.1


def test_a_condition_for_every_token_modulates_each_by_its_own():
    block, (tokens, condition, rotation) = block_of(), inputs(per_token=True)
    expected = reference(block.state_dict(), tokens, condition)
    torch.testing.assert_close(block(tokens, condition, rotation), expected, rtol=1e-6, atol=1e-6)


def test_every_option_changes_the_result():
    results = [block_of(**settings)(*inputs()) for settings in OPTIONS.values()]
    assert all((one - other).abs().max() > 1e-3 for i, one in enumerate(results) for other in results[:i])


def backends_agree(backend: str, dtype: torch.dtype, head_dim: int, device: str) -> None:
    """Compare a block, its gradients and those of its tokens with math in float64."""
    torch.manual_seed(0)
    num_tokens, width = 64, 3 * head_dim
    block = Modern(width=width, num_heads=3)
    for name, parameter in block.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name in ("q_norm.weight", "k_norm.weight")), std=0.1)
    tokens, condition, weights = torch.randn(2, num_tokens, width), torch.randn(2, width), torch.randn(width)
    rotation = rotation_table(torch.cartesian_prod(torch.arange(8), torch.arange(8)), head_dim).to(device)
    results = []
    for attend, precision in (BACKENDS[backend], torch.float32), (attend_math, torch.float64):
        net = block.to(device, precision).requires_grad_()
        net.attend = attend
        leaf = tokens.to(device, precision).requires_grad_()
        with torch.autocast(device, dtype, enabled=precision == torch.float32 and dtype != torch.float32):
            out = net(leaf, condition.to(device, precision), rotation) - leaf
        gradients = torch.autograd.grad((out * weights.to(out)).sum(), (leaf, *net.parameters()))
        results.append([tensor.double() for tensor in (out, *gradients)])
    for name, got, expected in zip(("value", "tokens", *dict(block.named_parameters())), *results, strict=True):
        error = (got - expected).norm() / expected.norm()
        assert error < TOLERANCES[dtype] / 2, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["math", "sdpa", "sdpa_flash"])
def test_backends_agree_on_rotated_and_normalised_queries_and_keys(backend, dtype):
    backends_agree(backend, dtype, 16, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_on_a_gpu_agree_on_rotated_and_normalised_queries_and_keys(backend, dtype):
    for head_dim in (64, 72, 128):  # the last: a head of DiT-DH
        if not problem_of(backend, device=torch.device("cuda"), dtype=dtype, head_dim=head_dim, num_tokens=64):
            backends_agree(backend, dtype, head_dim, "cuda")


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(384, 1024), (768, 2048), (1024, 2730), (1152, 3072), (1536, 4096), (1792, 4778), (2048, 5461)],
)
def test_swiglu_has_the_published_hidden_width(width, hidden):
    with torch.device("meta"):
        block = Modern(width=width, num_heads=16)
    assert block.mlp.w12.weight.shape == (2 * hidden, width) and block.mlp.w3.weight.shape == (width, hidden)


def test_under_autocast_attention_gets_one_dtype_and_tokens_stay_float32():
    block, (tokens, condition, rotation) = block_of(torch.float32), inputs(torch.float32)
    dtypes = []
    block.attend = lambda q, k, v: dtypes.append({x.dtype for x in (q, k, v)}) or v
    with torch.autocast("cpu", torch.bfloat16):
        assert block(tokens, condition, rotation).dtype == torch.float32
    assert dtypes == [{torch.bfloat16}]


def test_products_of_queries_and_keys_depend_on_the_offset_on_the_grid():
    block, (tokens, condition, _) = block_of(), inputs()
    places = torch.tensor(COORDINATES)
    here, there = (rotation_table(places + torch.tensor(offset), WIDTH // HEADS) for offset in ((0, 0), (5, 3)))
    torch.testing.assert_close(
        block(tokens, condition, here), block(tokens, condition, there), rtol=1e-5, atol=1e-5
    )  # the table is in float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Modern, norm="batch"), "Modern.norm = 'batch': must be 'rms' or 'layer'"),
        (partial(Modern, mlp="relu"), "Modern.mlp = 'relu': must be 'swiglu' or 'gelu'"),
        (partial(Modern, num_heads=5), "DiffusionTransformer.num_heads = 5: must divide the width 24"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(**{"width": WIDTH, "num_heads": HEADS} | build.keywords)


def test_heads_that_rotary_positions_cannot_halve_are_refused():
    with pytest.raises(ValueError, match="a head has 6: set DiffusionTransformer.num_heads so .* a multiple of 4"):
        rotation_table(torch.tensor(COORDINATES), 6)


def test_a_block_without_its_rotation_says_who_supplies_it():
    tokens, condition, _ = inputs()
    with pytest.raises(ValueError, match=r"Modern\.rotary = True: needs a rotation table, which DiffusionTransformer"):
        block_of()(tokens, condition)
