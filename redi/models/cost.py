"""What a model costs in floating-point operations, and how many a device does per second."""

import copy
import time

import torch
from torch import nn

from redi.models.attention import attend_math

# FLOP/s of dense matrix products, by a part of the device's name, the longest first. H100 and H200: what large products
# reach within the power limit (the data sheet says 989); the others are the data sheets' rates with float32 sums.
NOMINAL_RATES = {
    torch.bfloat16: {
        "H200": 790e12, "H100": 790e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
    },
}  # fmt: skip


def forward_flops(model: nn.Module, *, align: bool = False) -> float:
    """FLOPs of the forward pass of one image: twice the multiply-adds of its matrix products and convolutions.

    Attention is counted in full, norms and activations are not, as in the published numbers (which are
    multiply-adds: half of this). Counted on a copy without memory; the model stays as it is.

    Args:
        model: a `DiffusionTransformer`, or what has its `forward`, `channels` and `grid`.
        align: with the projection for REPA.
    """
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake = without_memory(model, "cpu")
        for module in fake.modules():
            if hasattr(module, "attend"):
                module.attend = attend_math  # other backends are kernels that the counter does not know
        x = torch.empty(1, model.channels.total, *model.grid, device="cpu")
        t, y = torch.empty(1, device="cpu"), torch.empty(1, dtype=torch.int64, device="cpu")
        with FlopCounterMode(display=False) as counter:
            fake(x, t, y, **({"align": True} if align else {}))
    return float(counter.get_total_flops())


def training_flops(model: nn.Module, *, align: bool = False) -> float:
    """FLOPs of one image in a training step: a backward pass is two forward passes. What checkpointing computes
    again is not counted: this is the useful work."""
    return 3 * forward_flops(model, align=align)


def without_memory(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy that pretends to lie on `device` (which need not exist); to be called and used in a FakeTensorMode."""
    pretended = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in model.parameters()}
    pretended |= {id(b): torch.empty_like(b, device=device) for b in model.buffers()}
    return copy.deepcopy(model, pretended)  # the memo: what deepcopy takes for copied already


def matmul_rate(device: torch.device | str, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """FLOP/s of large square matrix products here and now: warmed up, the best of several within `seconds`.

    float32 on a GPU is what `torch.backends.cuda.matmul` allows at the moment (TF32 or not).
    """
    device, size = torch.device(device), 256
    while True:  # as large as takes 20 ms, for a rate that calls do not dilute: on a GPU 8192
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        _seconds_per_product(a, b, 1)
        once = _seconds_per_product(a, b, 1)
        if once > 0.02 or size == 8192:
            break
        size *= 2
    repeats, stop, best = max(1, round(0.02 / once)), time.perf_counter() + seconds, once
    while time.perf_counter() < stop:
        best = min(best, _seconds_per_product(a, b, repeats))
    return 2 * size**3 / best


def _seconds_per_product(a: torch.Tensor, b: torch.Tensor, repeats: int) -> float:
    _wait(a.device)
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    _wait(a.device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def nominal_rate(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of a device by its name ('NVIDIA H200'), or None where it is not known for this dtype."""
    rates = NOMINAL_RATES.get(dtype, {})
    return next((rate for part, rate in rates.items() if part in name.upper()), None)
