"""The choice among the ways to compute attention: a backend runs only after it agreed with the reference here."""

import warnings
from functools import cache

import torch
from einops import rearrange
from torch import Tensor

from redi.models.attention_backends import BACKENDS, GPU_ONLY, Attention, attend_math, attend_sdpa, load

# Largest error that passes, in the measure of `errors`: about twice that of `attend_math` itself in the worst of head
# dimensions 8 ... 128 and 2 ... 1024 tokens, which rounds every intermediate result to the dtype.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def choose_attention(
    backend: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int, num_tokens: int
) -> tuple[Attention, str]:
    """Return the attention function to use and one line that says which and why.

    'auto' takes xformers on a GPU where it passes `problem_of`, else sdpa. Raises ValueError for an unknown backend, or
    one bound by name that cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"DiffusionTransformer.attention = {backend!r}: it is one of auto, {', '.join(BACKENDS)}")
    device, auto, problems = torch.device(device), backend == "auto", []
    where = f"{device.type}, {str(dtype).removeprefix('torch.')}, head dimension {head_dim}, {num_tokens} tokens"
    if auto and device.type != "cuda":
        return attend_sdpa, f"sdpa (auto: always without CUDA; {where})"
    for name in ("xformers", "sdpa") if auto else (backend,):
        problem = problem_of(name, device=device, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)
        if not problem:
            return BACKENDS[name], f"{name} ({'; '.join(['auto' if auto else 'as bound', *problems, where])})"
        problems.append(f"{name} cannot run: {problem}" if auto else problem)
    raise ValueError(f"DiffusionTransformer.attention = {backend!r} cannot run here ({where}): {'; '.join(problems)}")


@cache
def problem_of(backend: str, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Why a backend cannot be used here, or ''. Tried once per process and setting."""
    if backend in GPU_ONLY and device.type != "cuda":
        return "it needs a GPU (CUDA)"
    try:
        load(backend)
    except (ImportError, OSError) as error:
        return _one_line(error)
    return probe(BACKENDS[backend], device=device, dtype=dtype, head_dim=head_dim, num_tokens=num_tokens)


def probe(attend: Attention, *, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Why a function does not serve as attention, or '': a small forward and backward pass against the reference."""
    shape = (1, max(2, num_tokens), 3 * 2 * head_dim)  # one token alone has no gradient to q and k
    with warnings.catch_warnings(record=True) as notes:  # PyTorch gives the reasons of its kernels as warnings
        warnings.simplefilter("always")
        try:
            qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            q, k, v = (rearrange(part, "n t (h d) -> n t h d", h=2) for part in qkv.chunk(3, dim=-1))
            value, gradient = errors(attend, q, k, v)
        except Exception as error:  # every library raises its own kind where it cannot run
            return "; ".join(dict.fromkeys([_one_line(error), *(_one_line(note.message) for note in notes)]))
    in_tf32 = (device.type, dtype) == ("cuda", torch.float32)  # or may be: it has the ten bits of float16
    tolerance = TOLERANCES[torch.float16 if in_tf32 else dtype]
    for what, distance in {"values differ": value, "gradients differ": gradient}.items():
        if not distance <= tolerance:  # also true for NaN
            return f"its {what} from the reference by {distance:.1e}, more than {tolerance:.0e} of their size"
    return ""


def errors(attend: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[float, float]:
    """How far value and gradient are from the reference in float64: the largest distance of a token's vector in one
    head, relative to the root mean square of the reference's vectors; of the three gradients, the worst.
    """
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(q)
    results = []
    for function, dtype in ((attend, q.dtype), (attend_math, torch.float64)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
            out = function(*inputs)
            results.append((out, *torch.autograd.grad(out, inputs, weights.to(dtype))))
    value, *gradients = (
        ((x.double() - reference).norm(dim=-1).max() / reference.norm(dim=-1).square().mean().sqrt()).item()
        for x, reference in zip(*results, strict=True)
    )
    return value, float(torch.tensor(gradients).max())  # unlike Python's, torch's max of a NaN is NaN


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:800]  # xformers spends 300 characters on the inputs, then the reasons
