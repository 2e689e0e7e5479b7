"""Choose an attention backend. Each backend is compared with a reference implementation before it is used."""

import warnings
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from redi.models.attention_backends import BACKENDS, GPU_ONLY, Attention, attend_math, attend_sdpa, load

# Largest tolerated error, as `errors` defines it: about twice the worst error of `attend_math`, which rounds every
# intermediate result to the dtype, over head dimensions 8 ... 128 and 2 ... 1024 tokens.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def choose_attention(
    backend: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int, num_tokens: int
) -> tuple[Attention, str]:
    """Return the attention function to use, and one line for the log with its name and the reason.

    'auto' chooses xformers on a GPU if `problem_of` returns '', else sdpa. Raises ValueError for an unknown backend, or
    one that cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"DiffusionTransformer.attention = {backend!r}: must be one of auto, {', '.join(BACKENDS)}")
    device, auto = torch.device(device), backend == "auto"
    problems: list[str] = []
    where = f"{device.type}, {str(dtype).removeprefix('torch.')}, head dimension {head_dim}, {num_tokens} tokens"
    if auto and device.type != "cuda":
        return attend_sdpa, f"sdpa (auto, without CUDA; {where})"
    for name in ("xformers", "sdpa") if auto else (backend,):
        problem = problem_of(name, device=device, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)
        if not problem:
            return BACKENDS[name], f"{name} ({'; '.join(['auto' if auto else 'as bound', *problems, where])})"
        problems.append(f"{name} cannot run: {problem}" if auto else problem)
    advice = "" if auto else "; set it to 'auto' or another backend"
    raise ValueError(
        f"DiffusionTransformer.attention = {backend!r} cannot run here ({where}): {'; '.join(problems)}{advice}"
    )


@cache
def problem_of(backend: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Return why a backend cannot run here, or ''. Each setting is tested once per process."""
    if backend in GPU_ONLY and device.type != "cuda":
        return "it needs a GPU (CUDA)"
    try:
        load(backend)
    except (ImportError, OSError) as error:
        return _one_line(error)
    return probe(BACKENDS[backend], device=device, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)


def probe(attend: Attention, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Compare a forward and backward pass with the reference. Return why the function fails, or ''."""
    shape = (1, max(2, num_tokens), 3 * 2 * head_dim)  # a single token gives q and k no gradient
    with warnings.catch_warnings(record=True) as notes:  # PyTorch warns why its kernels cannot run
        warnings.simplefilter("always")
        try:
            qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=2) for part in qkv.chunk(3, dim=-1))
            value, gradient = errors(attend, q, k, v)
        except Exception as error:  # every library raises its own errors if it cannot run
            return "; ".join(dict.fromkeys([_one_line(error), *(_one_line(note.message) for note in notes)]))
    may_be_tf32 = (device.type, dtype) == ("cuda", torch.float32)  # TF32 has the ten mantissa bits of float16
    tolerance = TOLERANCES[torch.float16 if may_be_tf32 else dtype]
    for name, size in {"values": value, "gradients": gradient}.items():
        if not size <= tolerance:  # also true for NaN
            return f"its {name} differ from the reference by {size:.1e}, above the relative tolerance {tolerance:.0e}"
    return ""


def errors(
    attend: Attention, q: Tensor, k: Tensor, v: Tensor, *, reference: Attention = attend_math
) -> tuple[float, float]:
    """Return the errors of the value and of the worst gradient, relative to the reference in float64.

    An error is the largest distance over all tokens and heads, divided by the RMS norm of the reference vectors.
    """
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q)
    results = []
    for function, dtype in ((attend, q.dtype), (reference, torch.float64)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
            out = function(*inputs)
            results.append((out, *torch.autograd.grad(out, inputs, weights.to(dtype))))
    value, *gradients = (
        ((x.double() - exact).norm(dim=-1).max() / exact.norm(dim=-1).square().mean().sqrt()).item()
        for x, exact in zip(*results, strict=True)
    )
    return value, float(torch.tensor(gradients).max())  # torch's max propagates NaN, Python's does not


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:800]  # xformers lists its inputs first, in 300 characters
