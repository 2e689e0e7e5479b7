"""The ways to compute attention: functions of q, k, v (N, T, heads, head_dim)."""

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
    """softmax(q k^T / sqrt(d)) v, written out: the reference for all others."""
    scores = torch.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("nhqk,nkhd->nqhd", scores.softmax(dim=-1), v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's scaled_dot_product_attention. On a GPU it could choose cuDNN's kernel, whose gradients are reported to
    be NaN at times: the flash kernel comes first here, then the memory-efficient one, then plain products.
    """
    if q.device.type != "cuda":
        return _sdpa(q, k, v)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True):
        return _sdpa(q, k, v)


def attend_sdpa_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(q, k, v)


def attend_sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory-efficient attention, after `load`; it chooses its kernel itself."""
    return _xformers_forward(q, k, v)[0]


# xformers' forward and backward as operators, into which torch.compile does not look: its own function breaks the graph
# where the backward pass is cutlass', to which it hands empty tensors on the CPU.
@torch.library.custom_op("redi::xformers_attention", mutates_args=())
def _xformers_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The attended values, and log(sum(exp(scores))) (N, heads, T) in float32."""
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
    """FlashAttention-3 from the package flash_attn_interface, after `load`."""
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
    """Import the library that a backend comes from. Raises ImportError or OSError where it does not load."""
    if backend == "flash3":
        import flash_attn_interface  # noqa: F401

        if not hasattr(torch.ops.flash_attn_3, "_flash_attn_forward"):  # torch.compile needs it as an operator
            raise ImportError("this version of flash_attn_interface has no operators that torch.compile can trace")
    if backend != "xformers":
        return
    logging.getLogger("xformers").setLevel(logging.ERROR)  # importing it warns about what a CPU does not have
    # Its library is built for CUDA 12. Beside a torch built for CUDA 13, the runtime that it needs comes from the
    # package nvidia-cuda-runtime-cu12 (the extra `gpu`) and must be loaded before it.
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or ():
        for library in Path(folder).glob("cuda_runtime/lib/libcudart.so.12"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import xformers.ops.fmha

    if not getattr(xformers, "_has_cpp_library", True):
        hint = "with torch for CUDA 13 it needs nvidia-cuda-runtime-cu12 (the extra `gpu`)"
        raise ImportError(f"its compiled library does not load: {hint}")
