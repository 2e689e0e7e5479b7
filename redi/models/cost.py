"""The floating-point operations (FLOPs) of a model, and the FLOP/s of a device."""

import copy
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from redi.models.attention import attend_math
from redi.models.interface import state_of

# FLOP/s of dense bfloat16 matrix products with float32 accumulation, by a part of the device's name. From the data
# sheets, except H100 and H200: the rate of large products within the power limit (data sheet: 989e12).
NOMINAL_RATES = {
    "H200": 790e12, "H100": 790e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def forward_flops(model: nn.Module, *, align: bool = False) -> float:
    """Return the FLOPs of a forward pass for one image: two per multiply-add of matrix products and convolutions.

    Attention is counted; norms and activations are not, as in published numbers (which often count multiply-adds: half
    of this). A training step costs three forward passes, plus the recomputation of checkpointing. The weights of the
    model are not read. `align` includes the projector for REPA.
    """
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton if it is installed

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake: Any = without_memory(model, "cpu")
        for module in fake.modules():
            if hasattr(module, "attend"):
                module.attend = attend_math  # the counter does not know the kernels of other backends
        state = state_of(model)
        x = torch.empty(1, state.channels.total, *state.grid, device="cpu")
        t, y = torch.empty(1, device="cpu"), torch.empty(1, dtype=torch.int64, device="cpu")
        with FlopCounterMode(display=False) as counter:
            fake(x, t, y, **({"align": True} if align else {}))
    return float(counter.get_total_flops())


def without_memory(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a copy on `device`, without memory; the device need not exist. Use it inside a FakeTensorMode."""
    memo: dict[int, Tensor] = {id(b): torch.empty_like(b, device=device) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device=device), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)  # takes these tensors instead of copying the model's


def matmul_rate(device: torch.device | str, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Measure the FLOP/s of large square matrix products on this device: the best of several within `seconds`."""
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
    """Return the nominal FLOP/s of a device by its name, such as 'NVIDIA H200'; None if unknown for this dtype."""
    rates = (rate for part, rate in NOMINAL_RATES.items() if part in name.upper() and dtype == torch.bfloat16)
    return next(rates, None)
