"""What a model costs in floating-point operations, and how many a device does per second."""

import copy
import math
import time

import torch
from torch import nn

from redi.models.attention import attend_math
from redi.models.interface import state_of

# FLOP/s of dense bfloat16 products, by a part of the device's name, from the data sheets (float32 sums); H100 and H200:
# what large products reach within the power limit (the data sheet says 989).
NOMINAL_RATES = {
    "H200": 790e12, "H100": 790e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def forward_flops(model: nn.Module, *, align: bool = False) -> float:
    """FLOPs of the forward pass of one image: twice the multiply-adds of its matrix products and convolutions.

    A training step takes three of them; what checkpointing computes again is not counted. Attention is counted in full,
    norms and activations are not, as in the published numbers (multiply-adds: half of this).

    Args:
        align: include the projection for REPA.
    """
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake = without_memory(model, "cpu")
        for module in fake.modules():
            if hasattr(module, "attend"):
                module.attend = attend_math  # other backends are kernels that the counter does not know
        state = state_of(model)
        x = torch.empty(1, state.channels.total, *state.grid, device="cpu")
        t, y = torch.empty(1, device="cpu"), torch.empty(1, dtype=torch.int64, device="cpu")
        with FlopCounterMode(display=False) as counter:
            fake(x, t, y, **({"align": True} if align else {}))
    return float(counter.get_total_flops())


def without_memory(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy that pretends to lie on `device` (which need not exist); to be called and used in a FakeTensorMode."""
    pretended = {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in model.parameters()}
    pretended |= {id(b): torch.empty_like(b, device=device) for b in model.buffers()}
    return copy.deepcopy(model, pretended)  # the memo: what deepcopy takes for copied already


def matmul_rate(device: torch.device | str, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """FLOP/s of large square matrix products on this device now, the best of several within `seconds`."""
    device = torch.device(device)
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    end, best = time.perf_counter() + seconds, math.inf
    while (start := time.perf_counter()) < end:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def nominal_rate(name: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of a device by its name ('NVIDIA H200'), or None where it is not known for this dtype."""
    rates = (rate for part, rate in NOMINAL_RATES.items() if part in name.upper() and dtype == torch.bfloat16)
    return next(rates, None)
