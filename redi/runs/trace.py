"""What a profile spent its time on: operations and kernels, and the part of the model that each belongs to."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import record_function

# Named ranges of a step; whatever lies in none of these is "other".
STAGES = ("data", "encode", "forward", "backward", "optimizer", "ema", "sampling", "decode")
# What a module of the transformer belongs to, by the first of its path's names that is here.
PARTS = {
    "timestep_embedding": "embeddings", "label_embedding": "embeddings", "group_embeddings": "embeddings",
    "fusion": "fusion", "projector": "alignment",
    "qkv": "attention", "projection": "attention", "mlp": "MLP",
    "modulation": "modulation and norms", "final_modulation": "modulation and norms",
    "norm1": "modulation and norms", "norm2": "modulation and norms", "final_norm": "modulation and norms",
}  # fmt: skip
IN_BLOCK = "modulation and norms"  # also what a block does between its modules: shift, scale, gate, add
# What tells by its name, in a compiled graph and between the modules of a block.
BY_NAME = {
    "attention": ("attention", "flash", "fmha", "xformers", "einsum", "softmax"),
    "MLP": ("gelu",),
    IN_BLOCK: ("layer_norm",),
}
NAMES = {*STAGES, *PARTS.values()}
PYTHON = "Python and dispatch between operations"
MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::conv2d"}  # whose FLOPs torch knows


@dataclass
class Cost:
    """All calls of one operation (CPU) or kernel (GPU) in one part."""

    name: str
    belongs_to: str
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0  # of matrix products and convolutions; what else torch counts, such as sums, is left out


@contextlib.contextmanager
def named_parts(model: nn.Module) -> Iterator[None]:
    """Context in which the modules of an eager model open ranges of `PARTS` around their forward passes."""
    handles = []
    for path, module in model.named_modules():
        names = path.split(".")
        if names[-1] in PARTS and not any(name in PARTS for name in names[:-1]):
            handles += _range_around(module, PARTS[names[-1]])
        if hasattr(module, "attend"):  # a block
            handles += _range_around(module, IN_BLOCK)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _range_around(module: nn.Module, name: str) -> list:
    opened: list[record_function] = []

    def before(*_) -> None:
        opened.append(record_function(name))
        opened[-1].__enter__()

    def after(*_) -> None:
        opened.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)]


def costs(events: Sequence, *, on_gpu: bool) -> list[Cost]:
    """The costs in `torch.profiler.profile(...).events()`, the dearest first.

    On the CPU the self time of every operation, that of ranges being what Python took between operations; on a GPU the
    time of every kernel. What the backward pass does belongs to the part whose forward operation it belongs to.
    """
    on_cpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    part_of = _parts(on_cpu)
    found: dict[tuple[str, str], Cost] = {}

    def cost(name: str, part: str) -> Cost:
        return found.setdefault((name, part), Cost(name, part))

    for event in on_cpu:
        if on_gpu:
            for kernel in event.kernels:
                _add(cost(kernel.name, _by_name(kernel.name, part_of[event.id])), kernel.duration)
            if event.name in MATRIX_PRODUCTS and event.kernels:  # the last is the product; before it are copies
                cost(event.kernels[-1].name, part_of[event.id]).flops += event.flops or 0
        else:
            own = cost(PYTHON if event.is_user_annotation else event.name, part_of[event.id])
            own.flops += event.flops or 0 if event.name in MATRIX_PRODUCTS else 0
            _add(own, event.self_cpu_time_total)
    if on_gpu:
        _add_unlinked(found, events)
    spent = [cost for cost in found.values() if cost.seconds > 0]
    return sorted(spent, key=lambda cost: -cost.seconds)


def matrix_flops(events: Iterable) -> float:
    """FLOPs of all matrix products and convolutions (of the backward pass: only products) that torch counted."""
    return float(sum(event.flops or 0 for event in events if event.name in MATRIX_PRODUCTS))


def _add(cost: Cost, microseconds: float) -> None:
    cost.calls += 1
    cost.seconds += microseconds / 1e6


def _parts(events: Sequence) -> dict[int, str]:
    """{event id: part}: the nearest range around it; in the backward pass, that of the forward operation."""
    of_sequence: dict[int, str] = {}
    parts: dict[int, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):  # parents before children
        inherited = parts.get(event.cpu_parent.id, "other") if event.cpu_parent else "other"
        if event.is_user_annotation and event.name in NAMES:
            inherited = event.name
        elif event.sequence_nr >= 0:
            if "evaluate_function" in event.name or event.scope == 1:  # of autograd's engine
                linked = of_sequence.get(event.sequence_nr, inherited)
                inherited = inherited if linked in STAGES else linked  # of a compiled graph only the stage is known
            elif inherited != "backward":
                inherited = _by_name(event.name, inherited)
                of_sequence[event.sequence_nr] = inherited
        parts[event.id] = _by_name(event.name, inherited)
    return parts


def _by_name(name: str, part: str) -> str:
    if part not in (*STAGES, IN_BLOCK, "graph", "other"):
        return part
    return next((own for own, words in BY_NAME.items() if any(word in name for word in words)), part)


def _add_unlinked(found: dict[tuple[str, str], Cost], events: Sequence) -> None:
    """Kernels that no operation launched by itself: those of a CUDA graph."""
    linked: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for cost in found.values():
        linked[cost.name][0] += cost.calls
        linked[cost.name][1] += cost.seconds
    for name, kernels in _kernels(events).items():
        calls, seconds = linked[name]
        if len(kernels) > calls:
            part = _by_name(name, "graph")
            rest = found[name, "graph"] = Cost(name, part)
            rest.calls, rest.seconds = len(kernels) - calls, max(0.0, sum(kernels) - seconds)


def _kernels(events: Sequence) -> dict[str, list[float]]:
    kernels = defaultdict(list)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            kernels[event.name].append(event.time_range.elapsed_us() / 1e6)
    return kernels
