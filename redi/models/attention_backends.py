"""The ways to compute attention: functions of q, k, v (N, T, heads, head_dim), and what each is limited to."""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

HALF = (torch.float16, torch.bfloat16)


def attend_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, written out: the reference for all others."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention; on a GPU its flash kernel, else the memory-efficient one, else plain
    products. Left alone it may take cuDNN's, of whose gradients there are open reports of NaN."""
    if q.device.type != "cuda":
        return _sdpa(q, k, v)
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels, set_priority=True):
        return _sdpa(q, k, v)


def attend_sdpa_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's flash kernel, or an error."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v)


def attend_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's kernel as PyTorch calls it, or an error."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory-efficient attention; `load` comes before the first call.

    xformers chooses among its kernels itself: FlashAttention-3 where that is installed; flash in half precision up to
    head dimension 256; cutlass in float32, beyond 256 and with deterministic algorithms. q, k, v share one dtype.
    """
    return _xformers_forward(q, k, v)[0]


# xformers' forward and backward as operators, into which torch.compile does not look: its own function breaks the graph
# where the backward pass is cutlass', to which it hands empty tensors on the CPU.
@torch.library.custom_op("redi::xformers_attention", mutates_args=())
def _xformers_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The attended values, and log(sum(exp(scores))) (N, heads, T) in float32."""
    from xformers.ops import memory_efficient_attention_forward_requires_grad

    out, logsumexp = memory_efficient_attention_forward_requires_grad(q, k, v)
    return out.contiguous(), logsumexp[..., : q.shape[1]].contiguous()  # cutlass pads to a multiple of 32


@_xformers_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    batch, num_tokens, num_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, num_heads, num_tokens), dtype=torch.float32)


@torch.library.custom_op("redi::xformers_attention_backward", mutates_args=())
def _xformers_backward(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from xformers.ops.fmha import memory_efficient_attention_backward

    dq, dk, dv = memory_efficient_attention_backward(gradient, out, logsumexp, q, k, v)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@_xformers_backward.register_fake
def _(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs)


def _differentiate(ctx, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _xformers_backward(gradient.contiguous(), *ctx.saved_tensors)


_xformers_forward.register_autograd(_differentiate, setup_context=_keep)


def attend_flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-3 from the package flash_attn_interface; `load` comes before the first call."""
    from flash_attn_interface import flash_attn_func

    return flash_attn_func(q, k, v, deterministic=torch.are_deterministic_algorithms_enabled())


BACKENDS: dict[str, Attention] = {
    "math": attend_math,
    "sdpa": attend_sdpa,
    "sdpa_flash": attend_sdpa_flash,
    "sdpa_cudnn": attend_sdpa_cudnn,
    "xformers": attend_xformers,
    "flash3": attend_flash3,
}


def limit(backend: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why a backend cannot compute this, as far as its documentation and source say without a trial, or ''."""
    on_gpu = device.type == "cuda"
    if backend in ("xformers", "sdpa_cudnn", "flash3") and not on_gpu:
        return "it needs a GPU (CUDA)"
    if (backend in ("sdpa_cudnn", "flash3") or (backend == "sdpa_flash" and on_gpu)) and dtype not in HALF:
        return "it computes in float16 and bfloat16 only"
    if backend == "xformers" and dtype not in (*HALF, torch.float32):
        return "it computes in float32, float16 and bfloat16 only"
    if backend in ("xformers", "flash3") and dtype in HALF and head_dim % 8:
        return f"in half precision the head dimension has to be a multiple of 8, and {head_dim} is not"
    if backend == "flash3" and head_dim > 256:
        return f"the head dimension is 256 at most, and {head_dim} is more"
    return ""


@cache
def load(backend: str) -> None:
    """Imports the library that a backend comes from.

    Raises:
        ImportError: it is not installed, or a version that does not serve.
        OSError: a shared library that it needs cannot be loaded.
    """
    if backend == "xformers":
        _load_xformers()
    elif backend == "flash3":
        if importlib.util.find_spec("flash_attn_interface") is None:
            raise ImportError("the package flash_attn_interface (FlashAttention-3) is not installed")
        import flash_attn_interface  # noqa: F401

        if not hasattr(torch.ops.flash_attn_3, "_flash_attn_forward"):  # torch.compile needs it as an operator
            raise ImportError("this version of flash_attn_interface has no operators that torch.compile can trace")


def _load_xformers() -> None:
    logging.getLogger("xformers").setLevel(logging.ERROR)  # importing it warns about what a CPU does not have
    # Its library is built for CUDA 12. Beside a torch built for CUDA 13, the runtime that it needs comes from the
    # package nvidia-cuda-runtime-cu12 (the extra `gpu`) and must be loaded before it.
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or ():
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import xformers.ops.fmha

    if not getattr(xformers, "_has_cpp_library", True):
        raise ImportError(
            "the compiled library of xformers does not load: beside a torch for CUDA 13 it needs the package "
            "nvidia-cuda-runtime-cu12 (the extra `gpu`)"
        )
