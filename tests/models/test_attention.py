import math
import sys
import warnings

import pytest
import torch

from redi.models.attention import (
    BACKENDS,
    TOLERANCES,
    attend_math,
    attend_sdpa,
    choose_attention,
    errors,
    probe,
    problem_of,
)
from redi.models.attention_backends import load

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_CPU = ["math", "sdpa", "sdpa_flash"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def views(num_tokens: int, head_dim: int, dtype: torch.dtype, *, heads: int = 2, device=CPU) -> list[torch.Tensor]:
    """q, k, v as a block of the transformer makes them: views of one tensor (2, T, 3 D)."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, num_tokens, 3 * heads * head_dim, generator=generator).to(device, dtype)
    return [part.unflatten(-1, (heads, head_dim)) for part in qkv.chunk(3, dim=-1)]


def qkv(head_dim: int, dtype: torch.dtype, num_tokens: int = 7) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, num_tokens, 3, head_dim, dtype=dtype, requires_grad=True) for _ in range(3)]


def naive_attention(q, k, v):
    """One query of one head at a time."""
    out = torch.zeros_like(v)
    for n in range(q.shape[0]):
        for head in range(q.shape[2]):
            for i in range(q.shape[1]):
                scores = torch.stack([q[n, i, head] @ key for key in k[n, :, head]]) / q.shape[-1] ** 0.5
                weights = scores.exp() / scores.exp().sum()
                out[n, i, head] = sum(w * value for w, value in zip(weights, v[n, :, head], strict=True))
    return out


def test_math_attention_is_softmax_of_scaled_products_times_values():
    q, k, v = (x.detach() for x in qkv(5, torch.float64, num_tokens=4))
    torch.testing.assert_close(attend_math(q, k, v), naive_attention(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ON_CPU)
def test_attention_passes_gradcheck(backend):
    assert torch.autograd.gradcheck(BACKENDS[backend], qkv(3, torch.float64, num_tokens=2))


# float64 and float32: elementwise, so not only in the measure that the library itself probes with.
@pytest.mark.parametrize("head_dim", [1, 5, 16, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("backend", ["sdpa", "sdpa_flash"])
def test_backends_agree_with_math_in_value_and_gradient(backend, head_dim, dtype, tolerance):
    inputs = qkv(head_dim, dtype)
    weights = torch.randn(2, 7, 3, head_dim, dtype=dtype)
    results = []
    for attend in (attend_math, BACKENDS[backend]):
        out = attend(*inputs)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# Per dtype about twice the largest error of fused kernels, which keep scores and sums in float32.
FUSED = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("num_tokens", [7, 256])
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("dtype", FUSED)
@pytest.mark.parametrize("backend", ["sdpa", "sdpa_flash"])
def test_backends_are_as_close_to_float64_as_their_dtype_allows(backend, dtype, head_dim, num_tokens):
    assert max(errors(BACKENDS[backend], *views(num_tokens, head_dim, dtype))) < FUSED[dtype]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_on_a_gpu_are_close_to_float64_or_say_why_not(backend, dtype):
    fused = FUSED[torch.float16 if dtype == torch.float32 else dtype]
    for head_dim in (64, 72):
        for num_tokens in (77, 256):
            problem = problem_of(backend, device=GPU, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)
            assert "differ" not in problem
            if not problem:
                inputs = views(num_tokens, head_dim, dtype, heads=3, device=GPU)
                assert max(errors(BACKENDS[backend], *inputs)) < (TOLERANCES[dtype] if backend == "math" else fused)


@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_on_a_gpu_compile_to_one_graph(backend):
    for dtype in (torch.float32, torch.bfloat16):
        if not problem_of(backend, device=GPU, dtype=dtype, head_dim=72, num_tokens=64):
            compiled = torch.compile(BACKENDS[backend], fullgraph=True, backend="aot_eager")
            assert max(errors(compiled, *views(64, 72, dtype, device=GPU))) < TOLERANCES[torch.bfloat16]


@needs_gpu
def test_auto_on_a_gpu_is_xformers_or_says_why_not():
    attend, line = choose_attention("auto", device="cuda", dtype=torch.bfloat16, head_dim=72, num_tokens=256)
    assert attend is BACKENDS["xformers"] or attend is attend_sdpa and "xformers cannot run: " in line


@pytest.mark.parametrize("backend", ON_CPU)
def test_attention_compiles_to_one_graph_forward_and_backward(backend):
    inputs = views(9, 16, torch.float32)
    compiled = torch.compile(BACKENDS[backend], fullgraph=True, backend="aot_eager")
    for attend in (compiled, torch.no_grad()(compiled)):
        torch.testing.assert_close(attend(*inputs), BACKENDS[backend](*inputs), rtol=1e-6, atol=1e-6)
    assert max(errors(compiled, *inputs)) < FUSED[torch.float32]


def test_attention_is_equivariant_to_a_permutation_of_the_tokens():
    q, k, v = qkv(8, torch.float64)
    order = torch.randperm(7)
    permuted = attend_sdpa(q[:, order], k[:, order], v[:, order])
    torch.testing.assert_close(permuted, attend_sdpa(q, k, v)[:, order], rtol=1e-12, atol=1e-12)


@pytest.fixture
def xformers_kernels(monkeypatch):
    """Kernels with xformers' signatures that run on the CPU: its own need a GPU."""
    fmha = pytest.importorskip("xformers.ops.fmha")

    def scores_of(query, key):
        return torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])

    def forward(query, key, value):
        logsumexp = scores_of(query, key).logsumexp(-1)
        padding = -logsumexp.shape[-1] % 32  # as cutlass pads it
        return attend_math(query, key, value), torch.nn.functional.pad(logsumexp, (0, padding), value=math.inf).float()

    def backward(grad, output, lse, query, key, value):
        weights = (scores_of(query, key) - lse[..., None]).exp()
        through = torch.einsum("nqhd,nkhd->nhqk", grad, value) - (grad * output).sum(-1).transpose(1, 2)[..., None]
        of_scores = weights * through / math.sqrt(query.shape[-1])
        dq = torch.einsum("nhqk,nkhd->nqhd", of_scores, key)
        dk, dv = (torch.einsum("nhqk,nqhd->nkhd", x, y) for x, y in ((of_scores, query), (weights, grad)))
        return dq.to(query), dk.to(query), dv.to(query)

    monkeypatch.setattr("xformers.ops.memory_efficient_attention_forward_requires_grad", forward)
    monkeypatch.setattr(fmha, "memory_efficient_attention_backward", backward)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_xformers_operator_hands_its_kernels_what_belongs_where(xformers_kernels, compiled):
    inputs = views(9, 16, torch.float32)
    attend = BACKENDS["xformers"]
    if compiled:
        attend = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert max(errors(attend, *inputs)) < FUSED[torch.float32]


def test_the_xformers_operator_passes_torchs_own_checks(xformers_kernels):
    inputs = [x.requires_grad_() for x in views(9, 16, torch.float32)]
    torch.library.opcheck(torch.ops.redi.xformers_attention.default, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_xformers_operator_compiles_without_its_kernels(dtype):
    inputs = torch.empty(3, 2, 9, 3, 16, device="meta", dtype=dtype, requires_grad=True).unbind(0)
    out = torch.compile(BACKENDS["xformers"], fullgraph=True, backend="aot_eager")(*inputs)
    gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert {(x.shape, x.dtype) for x in (out, *gradients)} == {((2, 9, 3, 16), dtype)}


SETTING = {"device": "cpu", "dtype": torch.float32, "head_dim": 16, "num_tokens": 9}
SHAPE = SETTING | {"device": CPU}


def test_auto_is_sdpa_on_the_cpu_and_says_why():
    attend, reason = choose_attention("auto", **SETTING)
    assert attend is attend_sdpa
    assert reason == "sdpa (auto, without CUDA; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_backend_asked_for_by_name_is_taken_and_named(backend):
    attend, reason = choose_attention(backend, **SETTING)
    assert attend is BACKENDS[backend]
    assert reason == f"{backend} (as bound; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("head_dim", [1, 8, 33])
def test_backends_by_name_pass_their_check_in_every_dtype(backend, dtype, head_dim):
    for num_tokens in (1, 64):
        shape = {"head_dim": head_dim, "num_tokens": num_tokens}
        assert choose_attention(backend, device="cpu", dtype=dtype, **shape)[0] is BACKENDS[backend]


def test_an_unknown_backend_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="attention = 'flash': must be one of auto, math, sdpa, .*, xformers, flash3"):
        choose_attention("flash", **SETTING)


@pytest.mark.parametrize("backend", ["xformers", "sdpa_cudnn", "flash3"])
def test_what_needs_a_gpu_is_refused_on_a_cpu_with_the_reason(backend):
    with pytest.raises(
        ValueError, match=rf"attention = '{backend}' cannot run here \(cpu, float32, .*\): it needs a GPU"
    ):
        choose_attention(backend, **SETTING)


def test_a_library_that_is_not_installed_is_named():
    if problem := problem_of("flash3", device=GPU, dtype=torch.bfloat16, head_dim=64, num_tokens=8):
        assert "flash_attn_interface" in problem or torch.cuda.is_available()


def test_without_xformers_its_absence_is_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)  # as on platforms that have no wheel of it
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    monkeypatch.delitem(sys.modules, "xformers.ops.fmha", raising=False)
    with pytest.raises(ImportError, match="xformers"):
        load("xformers")


def test_the_probe_finds_a_wrong_value():
    assert "values differ" in probe(lambda q, k, v: 1.2 * attend_math(q, k, v), **SHAPE)


def test_the_probe_finds_a_wrong_token():
    wrong = torch.ones(9, 1, 1)
    wrong[-1] = 0
    assert "values differ" in probe(lambda q, k, v: wrong * attend_math(q, k, v), **SHAPE)


def test_the_probe_finds_not_a_number():
    assert "values differ from the reference by nan" in probe(lambda q, k, v: attend_math(q, k, v) * math.nan, **SHAPE)


class RightValuesWrongGradients(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return attend_math(q, k, v)

    @classmethod
    def backward(cls, ctx, gradient):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            dq, dk, dv = torch.autograd.grad(attend_math(*inputs), inputs, gradient)
        return dq, cls.factor * dk, dv


@pytest.mark.parametrize(("factor", "found"), [(1.0, ""), (1.2, "gradients differ"), (math.nan, "gradients differ")])
def test_the_probe_finds_a_wrong_gradient_behind_right_values(monkeypatch, factor, found):
    monkeypatch.setattr(RightValuesWrongGradients, "factor", factor)
    said = probe(RightValuesWrongGradients.apply, **SHAPE)
    assert found in said and bool(found) == bool(said)
    dtype = torch.bfloat16  # whose tolerance is the widest
    said = probe(RightValuesWrongGradients.apply, **SHAPE | {"dtype": dtype})
    assert found in said and bool(found) == bool(said)


def test_the_probe_gives_a_kernels_own_reason():
    said = probe(BACKENDS["sdpa_cudnn"], **SHAPE)
    assert said.startswith("No viable backend for scaled_dot_product_attention was found")


def test_the_probe_gives_the_warnings_beside_the_error():
    def attend(q, k, v):
        warnings.warn("the head dimension\n  is odd", stacklevel=1)
        raise NotImplementedError("no kernel")

    assert probe(attend, **SHAPE) == "no kernel; the head dimension is odd"


ON_GPU = {"device": "cuda:0", "dtype": torch.bfloat16, "head_dim": 72, "num_tokens": 256}
WHERE = "cuda, bfloat16, head dimension 72, 256 tokens"


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A dict to set: what a GPU would say against each backend."""
    problems = {}
    monkeypatch.setattr("redi.models.attention.problem_of", lambda backend, **shape: problems.get(backend, ""))
    return problems


def test_auto_on_a_gpu_takes_xformers_where_it_runs(pretended_gpu):
    assert choose_attention("auto", **ON_GPU) == (BACKENDS["xformers"], f"xformers (auto; {WHERE})")


def test_auto_on_a_gpu_takes_sdpa_and_says_why_where_xformers_does_not_run(pretended_gpu):
    pretended_gpu["xformers"] = "not installed"
    line = f"sdpa (auto; xformers cannot run: not installed; {WHERE})"
    assert choose_attention("auto", **ON_GPU) == (attend_sdpa, line)


def test_auto_is_refused_where_neither_runs(pretended_gpu):
    pretended_gpu |= {"xformers": "not installed", "sdpa": "nor this"}
    with pytest.raises(ValueError, match=r"'auto' cannot run here .*: xformers .*: not installed; sdpa .*: nor this"):
        choose_attention("auto", **ON_GPU)


def test_a_named_backend_that_cannot_run_is_refused_with_the_reason_alone(pretended_gpu):
    pretended_gpu["xformers"] = "not installed"
    message = r"'xformers' cannot run here \(.*\): not installed; set it to 'auto' or another backend$"
    with pytest.raises(ValueError, match=message):
        choose_attention("xformers", **ON_GPU)


def test_choosing_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    choose_attention("sdpa", **SETTING | {"num_tokens": 10})
    assert torch.equal(torch.get_rng_state(), before)
