"""Attention backends: functions of q, k, v (N, T, heads, head_dim)."""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v from its definition. The other backends are compared with it."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run PyTorch's scaled_dot_product_attention.

    On a GPU it prefers the flash kernel, then the memory-efficient one, then plain products. cuDNN's kernel is
    excluded, because NaN gradients have been reported for it.
    """
    if q.device.type != "cuda":
        return _sdpa(q, k, v)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        return _sdpa(q, k, v)


def attend_sdpa_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run PyTorch's flash kernel."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v)


def attend_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run cuDNN's kernel through PyTorch."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run the memory-efficient attention of xformers, which chooses its kernel itself. Call `load` first."""
    return _xformers_forward(q, k, v)[0]


# Custom operators, because torch.compile cannot trace xformers' own backward pass: it passes empty CPU tensors.
@torch.library.custom_op("redi::xformers_attention", mutates_args=())
def _xformers_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attended values and log(sum(exp(scores))) (N, heads, T) in float32."""
    from xformers.ops import memory_efficient_attention_forward_requires_grad

    out, logsumexp = memory_efficient_attention_forward_requires_grad(q, k, v)
    return out.contiguous(), logsumexp[..., : q.shape[1]].contiguous()  # cutlass pads to a multiple of 32


@torch.library.custom_op("redi::xformers_attention_backward", mutates_args=())
def _xformers_backward(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from xformers.ops.fmha import memory_efficient_attention_backward

    dq, dk, dv = memory_efficient_attention_backward(gradient.contiguous(), out, logsumexp, q, k, v)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


_xformers_forward.register_fake(
    lambda q, k, v: (q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32))
)
_xformers_backward.register_fake(lambda gradient, out, logsumexp, *qkv: tuple(x.new_empty(x.shape) for x in qkv))
_xformers_forward.register_autograd(
    lambda ctx, gradient, _: _xformers_backward(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*output, *inputs),
)


def attend_flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Run FlashAttention-3 of the package flash_attn_interface. Call `load` first."""
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
GPU_ONLY = ("sdpa_cudnn", "xformers", "flash3")


def load(backend: str) -> None:
    """Import the library of a backend. Raises ImportError or OSError if it cannot be loaded."""
    if backend == "flash3":
        import flash_attn_interface  # noqa: F401

        if not hasattr(torch.ops.flash_attn_3, "_flash_attn_forward"):  # torch.compile traces only operators
            raise ImportError("flash_attn_interface has no operators that torch.compile can trace: install a newer one")
    if backend != "xformers":
        return
    logging.getLogger("xformers").setLevel(logging.ERROR)  # on a CPU its import warns about missing features
    # xformers is built for CUDA 12. With torch for CUDA 13, the package nvidia-cuda-runtime-cu12 (the extra `gpu`)
    # provides the runtime, which must be loaded first.
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or ():
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import xformers.ops.fmha

    if not getattr(xformers, "_has_cpp_library", True):
        hint = "with torch for CUDA 13 it needs nvidia-cuda-runtime-cu12: pip install 'redi-diffusion[gpu]'"
        raise ImportError(f"its compiled library cannot be loaded: {hint}")
