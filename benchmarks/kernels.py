"""List the kernels that a call runs, with torch's profiler."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def kernel_names(call: Callable[[], object], device: str, *, num_kernels: int = 4) -> str:
    """Return the names of a call's most expensive kernels (CPU: operations), joined by commas, 60 letters each."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + on_gpu], acc_events=True) as trace:
        call()
        torch.zeros(1, device=device).cpu()  # synchronises the device
    on_cpu = torch.autograd.DeviceType.CPU
    rows = [row for row in trace.key_averages() if (row.device_type != on_cpu) == on_gpu]
    rows.sort(key=lambda row: -(row.self_device_time_total if on_gpu else row.self_cpu_time_total))
    return ", ".join(row.key[:60] for row in rows[:num_kernels])
