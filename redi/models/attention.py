"""One attention function, three ways to compute it, and an honest choice among them."""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, written out: the reference for tests. All (N, T, heads, head_dim)."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), v)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention, which picks its own kernel. All (N, T, heads, head_dim)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory-efficient attention; needs a GPU. All (N, T, heads, head_dim)."""
    return _xformers_attention()(q, k, v)


@cache
def _xformers_attention() -> Attention:
    logging.getLogger("xformers").setLevel(logging.ERROR)  # importing it warns about what a CPU does not have
    # Its library is built for CUDA 12. Beside a torch built for CUDA 13, the runtime that it needs comes from the
    # package nvidia-cuda-runtime-cu12 (the extra `gpu`) and must be loaded before it.
    nvidia = importlib.util.find_spec("nvidia")
    for folder in nvidia.submodule_search_locations if nvidia else ():
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention


BACKENDS: dict[str, Attention] = {"math": attend_math, "sdpa": attend_sdpa, "xformers": attend_xformers}


def choose_attention(
    backend: str, *, device: torch.device | str, dtype: torch.dtype, head_dim: int, num_tokens: int
) -> tuple[Attention, str]:
    """The attention function to use and one line that says which and why.

    'auto' takes xformers on a GPU where a tiny forward and backward pass agrees with the reference, and
    PyTorch's SDPA everywhere else.

    Raises:
        ValueError: an unknown backend, or one asked for by name that cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"DiffusionTransformer.attention = {backend!r}: it is one of auto, {', '.join(BACKENDS)}")
    device = torch.device(device)
    setting = f"{device.type}, {str(dtype).removeprefix('torch.')}, head dimension {head_dim}, {num_tokens} tokens"
    if backend == "auto" and device.type != "cuda":
        return attend_sdpa, f"sdpa (auto: no GPU, which xformers needs; {setting})"
    name = "xformers" if backend == "auto" else backend
    if problem := _probe(BACKENDS[name], device, dtype, head_dim, num_tokens):
        if backend != "auto":
            raise ValueError(f"DiffusionTransformer.attention = {backend!r} cannot run here ({setting}): {problem}")
        return attend_sdpa, f"sdpa (auto: xformers cannot run: {problem}; {setting})"
    return BACKENDS[name], f"{name} ({'auto' if backend == 'auto' else 'as bound'}; {setting})"


def _probe(attend: Attention, device: torch.device, dtype: torch.dtype, head_dim: int, num_tokens: int) -> str:
    """Why the function cannot be used, or '': a forward and backward pass against the reference."""
    if attend is attend_xformers and device.type != "cuda":
        return "it needs a GPU"
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, num_tokens, 2, head_dim, generator=generator).to(device, dtype).requires_grad_()
        for _ in range(3)
    )
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = attend(q, k, v)
            gradients = torch.autograd.grad(out.double().square().sum(), (q, k, v))
            expected = attend_math(*(x.double() for x in (q, k, v)))
            expected_gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    except (ImportError, RuntimeError, OSError) as error:
        return " ".join(str(error).split())[:300]  # xformers explains itself over many lines
    tolerance = 50 * torch.finfo(dtype).eps
    for got, reference in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        error = (got.double() - reference.double()).abs().max() / reference.double().abs().max()
        if not error <= tolerance:  # also true for NaN
            return f"it differs from the reference by {error:.1e} (relative to the largest value)"
    return ""
