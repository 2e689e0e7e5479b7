"""Shows where the time of your configuration goes: a trace, the ten dearest operations, FLOPs and utilisation.

python -m redi.profile --gin_file=digits.gin                    steps of training, with the data, as redi.train does
python -m redi.profile --run_dir=runs/digits --stage=sampling   one batch, as redi.sample draws it

Writes profile/ in --run_dir and nothing else there: trace.json.gz (for ui.perfetto.dev), report.md and report.json.
The weights are new ones, which costs the same; bindings that differ from those of the run may be tried.
"""

import inspect
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from redi import command_line

FLAGS = flags.FLAGS
log = logging.getLogger("redi")

# Torch's profiler reports an error where there is a CUDA build and no GPU; it reads this when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

flags.DEFINE_enum("stage", "training", ["training", "sampling"], "What is profiled.")


def stage(run_dir: Path) -> None:
    """Profiles under the parsed configuration; prints and writes the report."""
    from redi.core import config
    from redi.runs.profiling import FOLDER, describe, profile

    with _subject(run_dir) as subject:
        result = config.call(profile, run_dir=run_dir, subject=subject)
    text = describe(result)
    (run_dir / FOLDER / "report.md").write_text(text)
    print(text, end="", flush=True)
    log.info("trace, for ui.perfetto.dev: %s", run_dir / FOLDER / "trace.json.gz")


@contextmanager
def _subject(run_dir: Path) -> Iterator:
    """What --stage names, with everything built as `train` builds it; the loader ends with the context."""
    import torch

    from redi.runs.experiment import Experiment
    from redi.runs.prepare import prepared
    from redi.runs.profiling import FOLDER
    from redi.runtime.device import choose_compile, choose_device, choose_precision, own_gpu
    from redi.training.trainer import train

    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if (run_dir / "audit.json").exists():  # of the run itself: the data need not be looked at again
        shutil.copy(run_dir / "audit.json", folder)
    experiment = Experiment(folder)
    codec, dataset = experiment.codec, prepared(experiment)
    settings = _settings(train)
    device = own_gpu(choose_device(settings["device"]))
    torch.manual_seed(settings["seed"])
    objective = settings["objective"](channels=codec.channels, num_classes=dataset.num_classes)
    model = settings["model"](**objective.model_arguments(codec, dataset)).to(device)
    codec.to(device)
    if FLAGS.stage == "sampling":
        yield _sampling(codec, model, objective, device)
        return
    precision, compiled = choose_precision(settings["precision"], device), choose_compile(settings["compile"], device)
    log.info("attention: %s", model.choose_attention(device, precision.dtype))
    with _training(settings, codec, dataset, model, objective, precision, compiled) as subject:
        yield subject


@contextmanager
def _training(settings: dict[str, Any], codec, dataset, model, objective, precision, compiled: bool) -> Iterator:
    from torch.profiler import record_function

    from redi.data.loader import batches
    from redi.models.cost import forward_flops
    from redi.runs.profiling import Subject
    from redi.training.step import TrainingStep

    device = next(model.parameters()).device
    shared = {name: settings[name] for name in ("accumulate", "max_grad_norm", "warmup_steps", "seed")}
    take_step = TrainingStep(
        codec=codec, model=model.train(), objective=objective, optimizer=settings["optimizer"](model.parameters()),
        ema=settings["ema"](model=model), precision=precision, compiled=compiled, **shared,
    )  # fmt: skip
    reading = {name: settings[name] for name in ("batch_size", "seed", "shuffle") if name in settings}
    data = batches(dataset, **reading, start=0, stop=1_000_000, pin=device.type == "cuda")
    numbers = iter(range(1_000_000))

    def call() -> tuple[float, float]:
        started = time.perf_counter()
        with record_function("data"):
            batch = next(data)
        waited = time.perf_counter() - started
        with record_function("data"):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        take_step(batch, next(numbers))
        return waited, 3.0

    with closing(data):
        flops = forward_flops(model, align=codec.alignment is not None)
        yield Subject("training", call, settings["batch_size"], flops, model, device, precision, compiled)


def _sampling(codec, model, objective, device):
    import torch
    from torch.profiler import record_function

    from redi.core import config
    from redi.models.cost import forward_flops
    from redi.runs.profiling import Subject
    from redi.runtime.device import choose_compile, choose_precision
    from redi.sampling.generate import generate

    settings = _settings(generate)
    images = settings["batch_size"]
    precision = choose_precision(settings["precision"], device, "generate.precision")
    compiled = choose_compile(settings["compile"], device, "generate.compile")
    draw = config.bound("sample.generate", generate)
    codec.decode = record_function("decode")(codec.decode)
    labels = torch.arange(images) % model.num_classes

    def call() -> tuple[float, float]:
        with record_function("sampling"):
            record = draw(model, codec, objective.process, labels=labels).record
        return 0.0, record["network_evaluations_per_image"]

    return Subject("sampling", call, images, forward_flops(model), model, device, precision, compiled)


def _settings(function: Callable) -> dict[str, Any]:
    """Every argument of a configurable function that has a default: its binding, or the default."""
    from redi.runs.checks import setting

    parameters = inspect.signature(function).parameters.values()
    return {p.name: setting(function, p.name) for p in parameters if p.default is not p.empty}


def main(run_dir: Path) -> None:
    command_line.parse(run_dir)
    stage(run_dir)


def console() -> None:
    command_line.run(main, __doc__, own_flags=("stage",))


if __name__ == "__main__":
    console()
