"""Profile training steps or one batch of sampling: a trace, a report, and the utilisation of the device."""

import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

from redi.core import config
from redi.core.registry import configurable
from redi.data.loader import batches
from redi.models.cost import forward_flops, matmul_rate, nominal_rate
from redi.models.interface import build_model, choose_attention_of, state_of
from redi.runs.checks import setting
from redi.runs.experiment import Experiment
from redi.runs.load import network_opener
from redi.runs.prepare import prepare_run
from redi.runtime.artefact import write_json
from redi.runtime.device import Precision, choose_compile, choose_precision, device_name, matmul_precision
from redi.runtime.paths import local_path
from redi.runtime.ranges import check_number
from redi.sampling.generate import generate
from redi.training.optimizers import make_optimizer
from redi.training.step import TrainingStep
from redi.training.trainer import train

log = logging.getLogger("redi")

# Named ranges of a step. Without compilation, the modules in PARTS are ranges too.
STAGES = {"data", "encode", "forward", "backward", "optimizer", "ema", "sampling", "decode"}
PARTS = {
    "embeddings": ("timestep_embedding", "label_embedding", "group_embeddings"),
    "fusion": ("fusion",),
    "alignment": ("projector",),
    "attention": ("qkv", "projection"),
    "MLP": ("mlp",),
    "modulation and norms": ("modulation", "final_modulation", "to_condition", "norm1", "norm2", "final_norm"),
}
CPU = torch.autograd.DeviceType.CPU


@dataclass
class Subject:
    """The operation to profile."""

    call: Callable[[], float]  # runs it once; returns its work in forward passes per image (training: 3)
    images: int  # per call
    model: nn.Module
    precision: Precision
    compiled: bool
    align: bool = False


@configurable(runtime=("run_dir", "stage"), entry=True)
def profile(
    run_dir: str | Path, *, stage: str, num_steps: int = 5, num_warmup_steps: int = 3, num_costs: int = 10
) -> dict:
    """Time some steps, trace the same number again, and write `profile/` in `run_dir`; return the report.

    Args:
        stage: 'training', or 'sampling' for one batch.
        num_steps: training steps to time (for speed and utilisation), then to trace (for shares of the time).
        num_warmup_steps: training steps before the timing starts, for compilation, kernel selection and caches.
        num_costs: number of operations in the list of the most expensive ones.
    """
    for name, value in {"num_steps": num_steps, "num_warmup_steps": num_warmup_steps, "num_costs": num_costs}.items():
        check_number(f"profile.{name}", value)
    if stage == "sampling":
        num_steps = num_warmup_steps = 1
    folder = local_path(run_dir) / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    if (audit := folder.parent / "audit.json").exists():  # reuse the run's audit
        shutil.copy(audit, folder)
    experiment = Experiment(folder)
    with _subject(experiment, stage) as subject:
        result = {"stage": stage} | _speed(subject, experiment.device, num_steps, num_warmup_steps)
        result |= _breakdown(subject, experiment.device, num_steps, num_costs, folder / "trace.json.gz")
    write_json(folder / "report.json", result)
    (folder / "report.md").write_text(format_report(result))
    log.info("wrote the trace %s (open it in ui.perfetto.dev)", folder / "trace.json.gz")
    return result


@contextmanager
def _subject(experiment: Experiment, stage: str) -> Iterator[Subject]:
    """Yield the operation to profile, with random weights."""
    codec, data, device = experiment.codec, prepare_run(experiment, trains=stage == "training"), experiment.device
    torch.manual_seed(setting(train, "seed"))
    channels = codec.for_image_size(data.image_size).channels
    objective = setting(train, "objective")(channels=channels, num_classes=data.num_classes).with_parts_of(codec)
    model = objective.attach(build_model(setting(train, "model"), objective.model_arguments(codec, data))).to(device)
    function = train if stage == "training" else generate
    precision = choose_precision(setting(function, "precision"), device, f"{function.__name__}.precision")
    compiled = choose_compile(setting(function, "compile"), device, f"{function.__name__}.compile")
    images = setting(function, "batch_size")
    if stage == "sampling":
        model.open_network = network_opener(experiment.trained_dir)
        yield Subject(_draw_batch(codec, model, objective, images), images, model, precision, compiled)
        return
    log.info("attention: %s", choose_attention_of(model.train(), device, precision.dtype))
    take_step = TrainingStep(
        codec=codec, model=model, objective=objective, optimizer=make_optimizer(setting(train, "optimizer"), model),
        ema=setting(train, "ema")(model=model), precision=precision, compiled=compiled,
        **{name: setting(train, name) for name in ("accumulate", "max_grad_norm", "warmup_steps", "schedule", "seed")},
    )  # fmt: skip
    reading = {name: setting(train, name) for name in ("batch_size", "seed", "shuffle")}
    with closing(batches(data, **reading, start=0, stop=1_000_000, pin=device.type == "cuda")) as loader:
        steps = enumerate(loader)

        def train_step() -> float:
            with record_function("data"):
                number, batch = next(steps)
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            take_step(batch, number)
            return 3.0

        yield Subject(train_step, images, model, precision, compiled, align=bool(codec.alignments))


def _draw_batch(codec, model: nn.Module, objective, images: int) -> Callable[[], float]:
    codec.decode = record_function("decode")(codec.decode)
    draw, labels = config.bound("sample.generate", generate), torch.arange(images) % state_of(model).num_classes

    def draw_batch() -> float:
        with record_function("sampling"):
            return draw(model, codec, objective.process, labels=labels).record["network_evaluations_per_image"]

    return draw_batch


def _repeat(subject: Subject, device: torch.device, times: int) -> tuple[float, float]:
    """Call the subject several times; return (seconds in total, forward passes per image and call)."""
    torch.zeros(1, device=device).cpu()  # synchronises the device
    started = time.perf_counter()
    passes = [subject.call() for _ in range(times)]
    torch.zeros(1, device=device).cpu()
    return time.perf_counter() - started, passes[0]


def _speed(subject: Subject, device: torch.device, num_steps: int, num_warmup_steps: int) -> dict:
    """Return seconds, memory, FLOPs and utilisation of untraced steps."""
    _repeat(subject, device, num_warmup_steps)
    if cuda := device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, passes = _repeat(subject, device, num_steps)
    unit = 1 if cuda or sys.platform == "darwin" else 1024  # bytes
    memory = torch.cuda.max_memory_allocated() if cuda else getrusage(RUSAGE_SELF).ru_maxrss
    flops = passes * forward_flops(subject.model, align=subject.align)  # per image
    speed = flops * subject.images * num_steps / seconds  # FLOP/s
    with matmul_precision(subject.precision.name):
        name, rate = device_name(device), matmul_rate(device, subject.precision.dtype)
    result = {
        "device": name, "torch": torch.__version__, "precision": subject.precision.name, "compiled": subject.compiled,
        "images_per_step": subject.images, "num_steps": num_steps, "step_seconds": seconds / num_steps,
        "images_per_second": subject.images * num_steps / seconds, "flops_per_image": flops,
        "flops_per_step": flops * subject.images, "matmul_flops_per_second": rate, "utilisation": speed / rate,
        "peak_memory_gib": memory * unit / 2**30,
    }  # fmt: skip
    if nominal := nominal_rate(name, subject.precision.dtype):
        result |= {"nominal_flops_per_second": nominal, "nominal_utilisation": speed / nominal}
    return result


def _breakdown(subject: Subject, device: torch.device, num_steps: int, num_costs: int, path: Path) -> dict:
    """Trace steps; return their parts and most expensive operations (GPU: kernels) as shares of the time."""
    if not subject.compiled:
        _name_parts(subject.model)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + (on_gpu := device.type == "cuda")]
    with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as trace:
        seconds, _ = _repeat(subject, device, num_steps)
    trace.export_chrome_trace(str(path))
    averages = trace.key_averages()
    rows = [row for row in averages if not row.is_user_annotation and (row.device_type != CPU) == on_gpu]
    spent = {row: (row.self_device_time_total if on_gpu else row.self_cpu_time_total) / 1e6 for row in rows}
    parts = time_by_part(trace.events(), on_gpu=on_gpu)
    parts["CUDA graphs"] = sum(spent.values()) - parts.total()  # kernels that no single operation launched
    costs = [(row.key, row.count / num_steps, spent[row] / num_steps, spent[row] / seconds) for row in rows]
    costs.sort(key=lambda cost: -cost[-1])
    return {
        "traced_step_seconds": seconds / num_steps,
        "share_device_busy": sum(spent.values()) / seconds,
        "share_waiting_for_data": sum(row.cpu_time_total for row in averages if row.key == "data") / 1e6 / seconds,
        "parts": {part: total / seconds for part, total in parts.most_common() if total > 1e-6 * seconds},
        "costs": [dict(zip(("name", "calls", "seconds", "share"), cost, strict=True)) for cost in costs[:num_costs]],
    }


def _name_parts(model: nn.Module) -> None:
    """Record a range around the forward pass of every module in `PARTS`, and of every block."""
    part_of = {name: part for part, names in PARTS.items() for name in names}
    for path, module in model.named_modules():
        *parents, name = path.split(".")
        # Between its modules, a block shifts, scales, gates and adds.
        part = "modulation and norms" if hasattr(module, "attend") else part_of.get(name)
        if part and not any(parent in part_of for parent in parents):
            module.forward = record_function(part)(module.forward)


def time_by_part(events: Sequence, *, on_gpu: bool) -> Counter:
    """Sum the seconds of the operations (on a GPU: of the kernels they launch) in each named range.

    An operation belongs to the innermost range around it; in the backward pass, to the range of its forward operation.
    """
    of_sequence: dict[int, str] = {}
    parts: dict[int, str] = {}
    seconds: Counter[str] = Counter()
    on_cpu = [event for event in events if event.device_type == CPU]
    for event in sorted(on_cpu, key=lambda event: event.time_range.start):  # parents before children
        part = parts.get(event.cpu_parent.id, "other") if event.cpu_parent else "other"
        if event.is_user_annotation and event.name in STAGES | set(PARTS):
            part = event.name
        elif event.sequence_nr >= 0 and ("evaluate_function" in event.name or event.scope == 1):  # autograd's engine
            forward = of_sequence.get(event.sequence_nr, part)
            part = part if forward in STAGES else forward
        elif event.sequence_nr >= 0 and part != "backward":
            of_sequence[event.sequence_nr] = part
        parts[event.id] = part
        if not event.is_user_annotation:
            seconds[part] += (sum(k.duration for k in event.kernels) if on_gpu else event.self_cpu_time_total) / 1e6
    return seconds


def format_report(result: dict) -> str:
    """Format the report as Markdown."""

    def table(head: Sequence, rows: Iterable) -> str:
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"

    def cell(name: str, value: object) -> str:
        share = "share" in name or "utilisation" in name
        return f"{value:.1%}" if share else f"{value:.4g}" if isinstance(value, float) else str(value)

    numbers = {name: value for name, value in result.items() if name not in ("parts", "costs")}
    summary = [(name.replace("_", " "), cell(name, value)) for name, value in numbers.items()]
    parts = [(part, f"{share:.1%}") for part, share in result["parts"].items()]
    costs = [[cell(name, value)[:70] for name, value in cost.items()] for cost in result["costs"]]
    return "\n".join([
        f"# Profile of {result['stage']}\n", table(("per step (sampling: per batch)", ""), summary),
        "Parts, as shares of the traced time:\n", table(("part", "share"), parts),
        "Most expensive operations, per step:\n", table(("operation", "calls", "seconds", "share"), costs),
    ])  # fmt: skip
