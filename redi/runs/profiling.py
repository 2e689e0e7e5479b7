"""Where the time of a training step or a batch of sampling goes: a trace, a report, and what the device could do."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from redi.core.registry import configurable
from redi.models.cost import matmul_rate, nominal_rate
from redi.runs.trace import costs, matrix_flops, named_parts
from redi.runtime.artefact import write_json
from redi.runtime.device import Precision, matmul_precision

FOLDER = "profile"


@dataclass
class Subject:
    """What is profiled.

    Args:
        stage: 'training' or 'sampling'.
        call: does one step, or draws one batch; -> the seconds for which it waited for data, and how many forward
            passes per image its work amounts to (a training step: 3).
        images: per call.
        forward_flops: of one image.
    """

    stage: str
    call: Callable[[], tuple[float, float]]
    images: int
    forward_flops: float
    model: nn.Module
    device: torch.device
    precision: Precision
    compiled: bool


@configurable(runtime=("run_dir", "subject"), entry=True)
def profile(
    run_dir: str | Path, *, subject: Subject, num_steps: int = 5, num_warmup_steps: int = 3, num_costs: int = 10
) -> dict:
    """Times some calls of the subject, traces as many more, and writes `profile/` in `run_dir`.

    `trace.json.gz` opens in ui.perfetto.dev or chrome://tracing; `report.md` and `report.json` say what it cost. Speed
    and utilisation are those of the calls without a trace, shares those of the calls with one.

    Args:
        num_steps: calls that are timed, and again traced; sampling takes one batch each.
        num_warmup_steps: calls before them: compilation, the choice of kernels, caches.
        num_costs: lines of the list of costs.

    Returns:
        What is in report.json.
    """
    for name, value in {"num_steps": num_steps, "num_warmup_steps": num_warmup_steps, "num_costs": num_costs}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"profile.{name} = {value!r}: a whole number of at least 1 is needed")
    if subject.stage == "sampling":
        num_steps = num_warmup_steps = 1
    if subject.compiled and subject.device.type == "cpu":
        from torch._inductor import config as inductor

        inductor.cpp.enable_kernel_profile = True  # else a compiled graph is one line
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _repeat(subject, num_warmup_steps)
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(subject.device)
    seconds, waited, passes = _repeat(subject, num_steps)
    memory = _peak_memory(subject.device)
    trace, traced_seconds = _traced(subject, num_steps)
    trace.export_chrome_trace(str(folder / "trace.json.gz"))
    flops = passes * subject.forward_flops  # per image
    result = _conditions(subject) | {
        "num_steps": num_steps,
        "step_seconds": seconds / num_steps,
        "images_per_second": subject.images * num_steps / seconds,
        "flops_per_image": flops,
        "flops_per_step": flops * subject.images,
    }
    result |= _utilisation(subject, result["flops_per_step"] / result["step_seconds"])
    result |= {"share_waiting_for_data": waited / seconds, "peak_memory_gib": memory}
    result |= _breakdown(trace.events(), subject, traced_seconds, num_steps, num_costs)
    write_json(folder / "report.json", result)
    return result


def _repeat(subject: Subject, times: int) -> tuple[float, float, float]:
    """-> seconds in all, of which waiting for data, forward passes per image."""
    _synchronize(subject.device)
    started, waited = time.perf_counter(), 0.0
    for _ in range(times):
        waiting, passes = subject.call()
        waited += waiting
    _synchronize(subject.device)
    return time.perf_counter() - started, waited, passes


def _traced(subject: Subject, times: int) -> tuple[torch_profile, float]:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (subject.device.type == "cuda")
    with torch_profile(activities=activities, record_shapes=True, with_flops=True, acc_events=True) as trace:
        if subject.compiled:
            seconds = _repeat(subject, times)[0]
        else:
            with named_parts(subject.model):
                seconds = _repeat(subject, times)[0]
    return trace, seconds


def _conditions(subject: Subject) -> dict:
    cuda = subject.device.type == "cuda"
    name = torch.cuda.get_device_name(subject.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {
        "stage": subject.stage, "device": name, "torch": torch.__version__, "precision": subject.precision.name,
        "compiled": subject.compiled, "images_per_step": subject.images,
    }  # fmt: skip


def _utilisation(subject: Subject, flops_per_second: float) -> dict:
    with matmul_precision(subject.precision.name):
        rate = matmul_rate(subject.device, subject.precision.dtype)
    result = {"matmul_flops_per_second": rate, "utilisation": flops_per_second / rate}
    on_gpu = subject.device.type == "cuda"
    if on_gpu and (nominal := nominal_rate(torch.cuda.get_device_name(subject.device), subject.precision.dtype)):
        result |= {"nominal_flops_per_second": nominal, "nominal_utilisation": flops_per_second / nominal}
    return result


def _breakdown(events, subject: Subject, seconds: float, num_steps: int, num_costs: int) -> dict:
    """The traced calls: their costs by part and by operation, as shares of their time."""
    found = costs(events, on_gpu=subject.device.type == "cuda")
    parts: dict[str, float] = {}
    for cost in found:
        parts[cost.belongs_to] = parts.get(cost.belongs_to, 0.0) + cost.seconds / seconds
    return {
        "traced_step_seconds": seconds / num_steps,
        "matrix_flops_in_trace_per_step": matrix_flops(events) / num_steps,
        "share_device_busy": sum(parts.values()),
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "costs": [
            asdict(cost) | {
                "calls": cost.calls / num_steps, "seconds": cost.seconds / num_steps, "flops": cost.flops / num_steps,
                "share": cost.seconds / seconds,
            }
            for cost in found[:num_costs]
        ],
    }  # fmt: skip


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float:
    """GiB: what torch's allocator held at most on a GPU; else what this process had resident at most, all in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, else KiB


def describe(result: dict) -> str:
    """The report as Markdown."""
    what = "step" if result["stage"] == "training" else "batch"
    lines = [
        f"# Profile of {result['stage']}",
        "",
        f"{result['device']}, torch {result['torch']}, {result['precision']}, "
        f"{'compiled' if result['compiled'] else 'not compiled'}; {result['num_steps']} x {result['images_per_step']} "
        "images after a warm-up.",
        "",
        "| | |",
        "|---|--:|",
        f"| seconds per {what} | {result['step_seconds']:.4g} |",
        f"| images per second | {result['images_per_second']:,.1f} |",
        f"| FLOPs per image (matrix products) | {result['flops_per_image'] / 1e9:,.4g} G |",
        f"| FLOPs per {what} | {result['flops_per_step'] / 1e12:,.4g} T |",
        f"| matrix products on this device, measured | {result['matmul_flops_per_second'] / 1e12:,.3g} TFLOP/s |",
        f"| utilisation of that | {result['utilisation']:.1%} |",
    ]
    if "nominal_utilisation" in result:
        nominal = result["nominal_flops_per_second"] / 1e12
        lines.append(f"| utilisation of the nominal {nominal:,.0f} TFLOP/s | {result['nominal_utilisation']:.1%} |")
    memory = "of tensors on the GPU" if not result["device"].startswith("CPU") else "of the process, resident"
    lines += [
        f"| waiting for data | {result['share_waiting_for_data']:.1%} |",
        f"| peak memory {memory} | {result['peak_memory_gib']:.2f} GiB |",
        f"| seconds per {what} while traced | {result['traced_step_seconds']:.4g} |",
        f"| of which the device is busy | {result['share_device_busy']:.1%} |",
        "",
        f"Where the time goes, as shares of the traced {what}:",
        "",
        "| part | share |",
        "|---|--:|",
        *(f"| {part} | {share:.1%} |" for part, share in result["parts"].items()),
        "",
        f"The dearest operations, per {what}:",
        "",
        "| operation | belongs to | calls | seconds | share | GFLOP |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for cost in result["costs"]:
        flops = f"{cost['flops'] / 1e9:,.4g}" if cost["flops"] else ""
        lines.append(
            f"| `{cost['name'][:70]}` | {cost['belongs_to']} | {cost['calls']:g} | {cost['seconds']:.4g} "
            f"| {cost['share']:.1%} | {flops} |"
        )
    return "\n".join(lines) + "\n"
