import math

import pytest
import torch

from redi.models import attention
from redi.models.attention import (
    BACKENDS,
    attend_math,
    attend_sdpa,
    block_inputs,
    choose_attention,
    deviations,
    medians,
    pick,
    probe,
    problem_of,
)
from redi.models.attention_backends import HALF, limit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_CPU = ["math", "sdpa", "sdpa_flash"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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
    _, *inputs = block_inputs(1, num_tokens, 2, head_dim, device=CPU, dtype=dtype)
    assert max(deviations(BACKENDS[backend], *inputs)) < FUSED[dtype]


@needs_gpu
@pytest.mark.parametrize("num_tokens", [77, 256])
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_on_a_gpu_are_close_to_float64_or_say_why_not(backend, dtype, head_dim, num_tokens):
    shape = {"device": GPU, "dtype": dtype, "head_dim": head_dim}
    if problem := problem_of(backend, num_tokens=num_tokens, **shape):
        assert "differ" not in problem
        pytest.skip(problem)
    _, *inputs = block_inputs(2, num_tokens, 3, head_dim, device=GPU, dtype=dtype)
    tolerance = attention.TOLERANCES[dtype] if backend == "math" else FUSED[dtype if dtype in HALF else torch.float16]
    assert max(deviations(BACKENDS[backend], *inputs)) < tolerance


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_on_a_gpu_compile_to_one_graph(backend, dtype):
    if problem := problem_of(backend, device=GPU, dtype=dtype, head_dim=72, num_tokens=64):
        pytest.skip(problem)
    _, *inputs = block_inputs(2, 64, 3, 72, device=GPU, dtype=dtype)
    compiled = torch.compile(BACKENDS[backend], fullgraph=True, backend="aot_eager")
    assert max(deviations(compiled, *inputs)) < attention.TOLERANCES[torch.bfloat16]


@needs_gpu
def test_auto_on_a_gpu_names_the_times_of_all_that_run():
    attend, line = choose_attention("auto", device="cuda", dtype=torch.bfloat16, head_dim=72, num_tokens=256)
    assert attend in {BACKENDS[name] for name in attention.CANDIDATES}
    assert " ms" in line and "sdpa " in line


@pytest.mark.parametrize("backend", ON_CPU)
def test_attention_compiles_to_one_graph_forward_and_backward(backend):
    _, *inputs = block_inputs(2, 9, 3, 16, device=CPU, dtype=torch.float32)
    compiled = torch.compile(BACKENDS[backend], fullgraph=True, backend="aot_eager")
    for attend in (compiled, torch.no_grad()(compiled)):
        torch.testing.assert_close(attend(*inputs), BACKENDS[backend](*inputs), rtol=1e-6, atol=1e-6)
    assert max(deviations(compiled, *inputs)) < FUSED[torch.float32]


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
    _, *inputs = block_inputs(2, 9, 3, 16, device=CPU, dtype=torch.float32)
    attend = BACKENDS["xformers"]
    if compiled:
        attend = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert max(deviations(attend, *inputs)) < FUSED[torch.float32]


def test_the_xformers_operator_passes_torchs_own_checks(xformers_kernels):
    inputs = [x.detach().requires_grad_() for x in block_inputs(2, 9, 3, 16, device=CPU, dtype=torch.float32)[1:]]
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
    assert reason == "sdpa (auto: always without CUDA; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_backend_asked_for_by_name_is_taken_and_named(backend):
    attend, reason = choose_attention(backend, **SETTING)
    assert attend is BACKENDS[backend]
    assert reason == f"{backend} (as bound; cpu, float32, head dimension 16, 9 tokens)"


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", attention.TOLERANCES)
@pytest.mark.parametrize("head_dim", [1, 8, 33])
def test_backends_by_name_pass_their_check_in_every_dtype(backend, dtype, head_dim):
    for num_tokens in (1, 64):
        shape = {"head_dim": head_dim, "num_tokens": num_tokens}
        assert choose_attention(backend, device="cpu", dtype=dtype, **shape)[0] is BACKENDS[backend]


def test_an_unknown_backend_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="attention = 'flash': it is one of auto, math, sdpa, .*, xformers, flash3"):
        choose_attention("flash", **SETTING)


@pytest.mark.parametrize("backend", ["xformers", "sdpa_cudnn", "flash3"])
def test_what_needs_a_gpu_is_refused_on_a_cpu_with_the_reason(backend):
    with pytest.raises(
        ValueError, match=rf"attention = '{backend}' cannot run here \(cpu, float32, .*\): it needs a GPU"
    ):
        choose_attention(backend, **SETTING)


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "why"),
    [
        ("xformers", torch.bfloat16, 72, ""),
        ("xformers", torch.bfloat16, 264, ""),  # cutlass takes over from flash
        ("xformers", torch.float32, 36, ""),
        ("xformers", torch.float16, 36, "has to be a multiple of 8, and 36 is not"),
        ("xformers", torch.float64, 64, "float32, float16 and bfloat16 only"),
        ("flash3", torch.bfloat16, 72, ""),
        ("flash3", torch.bfloat16, 33, "has to be a multiple of 8, and 33 is not"),
        ("flash3", torch.bfloat16, 264, "256 at most"),
        ("flash3", torch.float32, 64, "float16 and bfloat16 only"),
        ("sdpa_cudnn", torch.float32, 64, "float16 and bfloat16 only"),
        ("sdpa_flash", torch.float32, 64, "float16 and bfloat16 only"),
        ("sdpa", torch.float64, 33, ""),
        ("math", torch.float64, 33, ""),
    ],
)
def test_the_known_limits_on_a_gpu(backend, dtype, head_dim, why):
    said = limit(backend, device=GPU, dtype=dtype, head_dim=head_dim)
    assert why in said and bool(why) == bool(said)


def test_a_library_that_is_not_installed_is_named():
    if problem := problem_of("flash3", device=GPU, dtype=torch.bfloat16, head_dim=64, num_tokens=8):
        assert "flash_attn_interface" in problem or torch.cuda.is_available()


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


def test_xformers_explanation_is_cut_to_its_reasons():
    error = NotImplementedError(
        "No operator found for `memory_efficient_attention_forward` with inputs:\n     query       : shape=(1, 2)\n"
        "     p           : 0.0\n`fa2F@2.5.7-pt` is not supported because:\n    query.shape[-1] % 8 != 0"
    )

    def attend(q, k, v):
        raise error

    assert probe(attend, **SHAPE) == (
        "No operator found for `memory_efficient_attention_forward`: `fa2F@2.5.7-pt` is not supported because: "
        "query.shape[-1] % 8 != 0"
    )


@pytest.mark.parametrize(
    ("outcomes", "name", "why"),
    [
        ({"xformers": 1e-3, "sdpa": 2e-3}, "xformers", "the fastest of xformers 1 ms, sdpa 2 ms"),
        ({"xformers": 2e-3, "sdpa": 1e-3}, "sdpa", "the fastest of xformers 2 ms, sdpa 1 ms"),
        ({"xformers": 1.04e-3, "sdpa": 1e-3}, "xformers", "within 5% of the fastest of xformers 1.04 ms, sdpa 1 ms"),
        ({"xformers": 1.06e-3, "sdpa": 1e-3}, "sdpa", "the fastest of xformers 1.06 ms, sdpa 1 ms"),
        (
            {"xformers": 3e-3, "sdpa": 1.01e-3, "flash3": 1e-3},
            "flash3",
            "the fastest of xformers 3 ms, sdpa 1.01 ms, flash3 1 ms",
        ),
        ({"xformers": "no", "sdpa": 1e-3}, "sdpa", "the fastest of sdpa 1 ms; xformers cannot run: no"),
        (
            {"xformers": "no", "sdpa": 1.02e-3, "flash3": 1e-3},
            "sdpa",
            "within 5% of the fastest of sdpa 1.02 ms, flash3 1 ms; xformers cannot run: no",
        ),
        ({"xformers": None, "sdpa": None}, "xformers", "the first that runs, not timed"),
        ({"xformers": "no", "sdpa": None}, "sdpa", "the first that runs, not timed; xformers cannot run: no"),
    ],
)
def test_pick_takes_the_fastest_but_keeps_the_preferred_within_the_margin(outcomes, name, why):
    assert pick(outcomes) == (name, why)


def test_pick_refuses_where_nothing_runs():
    with pytest.raises(ValueError, match="xformers cannot run: no GPU; sdpa cannot run: nor this"):
        pick({"xformers": "no GPU", "sdpa": "nor this"})


def test_medians_leave_the_first_round_out_and_give_every_call_its_turn():
    seconds = {"a": iter([9, 1, 5, 2, 4, 3]), "b": iter([0, 1, 1, 7, 8, 9])}
    order = []

    def clock(call):
        order.append(call)
        return next(seconds[call])

    assert medians({"a": "a", "b": "b"}, clock) == {"a": 3, "b": 7}
    assert order == ["a", "b"] * 6


def test_timing_runs_forward_and_backward_of_each_and_gives_up_where_memory_is_short(monkeypatch):
    shape = {"device": CPU, "dtype": torch.float32, "head_dim": 4, "num_tokens": 16}
    monkeypatch.setattr(attention, "medians", lambda calls, clock: {name: clock(calls[name]) for name in calls})
    monkeypatch.setattr(attention, "_events", lambda device, call: call() or 1.0)
    assert attention.time_on_gpu(["sdpa"], **shape) == {"sdpa": 1.0}

    def out_of_memory(device, call):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(attention, "_events", out_of_memory)
    assert attention.time_on_gpu(ON_CPU, **shape) == dict.fromkeys(ON_CPU)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Problems and seconds as a GPU would give them, and a list of what was probed and timed."""
    asked = []

    def problem(backend, **shape):
        asked.append(("probe", backend))
        return "not installed" if backend == "flash3" else ""

    def seconds(names, **shape):
        asked.append(("time", *names))
        return dict(zip(names, (2e-3, 1e-3), strict=True))

    monkeypatch.setattr(attention, "problem_of", problem)
    monkeypatch.setattr(attention, "time_on_gpu", seconds)
    attention._choose.cache_clear()
    yield asked
    attention._choose.cache_clear()


ON_GPU = {"device": "cuda:0", "dtype": torch.bfloat16, "head_dim": 72, "num_tokens": 256}


def test_auto_on_a_gpu_probes_and_times_once_and_says_what_came_out(pretended_gpu):
    attend, line = choose_attention("auto", **ON_GPU)
    assert attend is attend_sdpa
    assert line == (
        "sdpa (auto: the fastest of xformers 2 ms, sdpa 1 ms; flash3 cannot run: not installed; "
        "cuda, bfloat16, head dimension 72, 256 tokens)"
    )
    assert pretended_gpu == [*(("probe", name) for name in attention.CANDIDATES), ("time", "xformers", "sdpa")]
    assert choose_attention("auto", **ON_GPU) == (attend, line)
    assert len(pretended_gpu) == 4  # sampling during training does not time again


def test_auto_on_a_gpu_does_not_go_by_time_where_algorithms_are_deterministic(pretended_gpu):
    choose_attention("auto", **ON_GPU)
    torch.use_deterministic_algorithms(True)
    try:
        attend, line = choose_attention("auto", **ON_GPU)
    finally:
        torch.use_deterministic_algorithms(False)
    assert attend is BACKENDS["xformers"] and "the first that runs, not timed" in line
    assert [what for what, *_ in pretended_gpu].count("time") == 1


def test_cudnn_is_nothing_that_auto_takes():
    assert "sdpa_cudnn" not in attention.CANDIDATES


def test_choosing_leaves_the_global_random_numbers_alone():
    attention._choose.cache_clear()
    before = torch.get_rng_state()
    choose_attention("sdpa", **SETTING)
    assert torch.equal(torch.get_rng_state(), before)
