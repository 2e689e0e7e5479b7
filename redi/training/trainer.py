"""The training loop."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from redi.core.ema import AveragedWeights
from redi.core.ema.exponential import EMA
from redi.core.objective import JointObjective
from redi.core.registry import configurable
from redi.models.codec import JointCodec
from redi.models.interface import build_model, choose_attention_of
from redi.models.transformer import DiffusionTransformer
from redi.runtime.checkpoint import list_checkpoints
from redi.runtime.device import choose_compile, choose_device, choose_precision, local_device
from redi.runtime.distributed import process_group
from redi.runtime.paths import local_path
from redi.sampling.generate import generate
from redi.training.guards import Guards, check_objects, check_settings
from redi.training.memory import check_memory as check_step_memory
from redi.training.observer import Observer
from redi.training.optimizers import ADAMW, make_optimizer
from redi.training.parallel import Parallel, parallels
from redi.training.schedules import Schedule
from redi.training.state import TrainingState
from redi.training.step import TrainingStep
from redi.training.warm_start import warm_start

log = logging.getLogger(__name__)


@configurable(
    runtime=("run_dir",),
    trains=True,
    harmless=(
        "num_steps", "accumulate", "parallel", "device", "compile", "check_memory", "max_skipped_steps",
        "stalled_seconds",
        "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "keep_best",
        "preview", "preview_every", "preview_images", "monitor", "monitor_every", "on_log",
    ),
)  # fmt: skip
def train(
    run_dir: str | Path,
    *,
    codec: JointCodec,
    dataset,
    model: Callable[..., nn.Module] = DiffusionTransformer,
    objective: Callable[..., JointObjective] = JointObjective,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
    ema: Callable[..., AveragedWeights] = EMA,
    parallel: Parallel | None = None,
    num_steps: int = 400_000,
    batch_size: int = 256,
    initial_weights: str | Path | None = None,
    accumulate: int = 1,
    max_grad_norm: float = 1.0,
    max_skipped_steps: int = 10,
    warmup_steps: int = 0,
    schedule: Schedule | Callable[[int], float] | None = None,
    precision: str = "auto",
    compile: str | bool = "auto",
    check_memory: bool = True,
    device: str = "auto",
    seed: int = 0,
    shuffle: str = "global",
    log_every: int = 100,
    checkpoint_every: int = 10_000,
    keep_checkpoints: int = 2,
    keep_every: int | None = None,
    keep_best: str | None = None,
    preview: Callable = generate,
    preview_every: int = 10_000,
    preview_images: int = 40,
    monitor: Callable[..., dict[str, float]] | None = None,
    monitor_every: int = 10_000,
    on_log: Callable[[dict], bool | None] | None = None,
    stalled_seconds: float = 120.0,
) -> Path:
    """Train a joint model in `run_dir`, or resume its training, and return the folder of the last checkpoint.

    `run_dir` receives checkpoints, the log and previews. Every random number is a function of (seed, step) and of the
    sample's row in the batch, so on the CPU a resumed run is bit-equal to an uninterrupted one. Under torchrun or srun
    all processes train one model (docs/launch.md). Their number does not affect samples and noise, and affects the
    loss only by rounding.

    Args:
        codec: the fitted codec, see `prepare`.
        dataset: the result of `prepare`: a `Cache`, or a `Dataset` that is encoded in every step.
        model, objective, optimizer, ema: classes or functions. Training supplies their missing arguments: channels,
            grid and number of classes, or the model's parameters. For models see `redi.models.interface.Model`, for
            optimizers docs/optimizers.md.
        parallel: how several processes share the work; default: `DDP`.
        batch_size: images per step over all processes. Each process computes its share in `accumulate` equal parts.
        initial_weights: a published checkpoint or the folder of a run with the same or fewer groups; see `warm_start`.
        max_grad_norm: clip the gradient to this norm; 0 disables clipping.
        max_skipped_steps: a step with a non-finite gradient is skipped. If more steps than this are skipped between
            two checkpoints, training stops and reports where the first non-finite value arose.
        warmup_steps: number of steps over which the learning rate rises linearly.
        schedule: a further factor for the learning rates, a function of the step such as `schedules.Cosine(400_000)`;
            default: constant.
        precision: 'float32', 'tf32' (float32 with products rounded by the GPU), 'bfloat16' (autocast), or 'auto':
            bfloat16 on a GPU that supports it, float32 elsewhere.
        compile: compile corruption, network and losses into one graph (torch.compile). The first step then takes a
            minute or two, and later steps are faster. 'auto' compiles on a GPU.
        check_memory: log the predicted memory of a step, and raise an error before the first step if it cannot fit.
        shuffle: 'global', or 'shards' for a streamed cache or one larger than memory (see `redi.data.loader.batches`).
        keep_checkpoints, keep_every, keep_best: which checkpoints to keep: the newest N, those at multiples of a step,
            and the best one by a metric of the monitor, as in `lowest frechet_distance_..._of_500`. With `keep_best`,
            a checkpoint is written after every measurement.
        preview: draws the sample grids during training: `generate`, whose settings may differ from the final sampling.
        monitor: measures the EMA weights during training (a prepared `redi.evaluation.monitor.Monitor`). The results
            are logged as monitor/<name>.
        on_log: called on rank 0 with every log entry, {"step": ..., "loss": ..., ...}, and after every checkpoint with
            {"step": ..., "checkpoint": path}. If it returns True, training ends with a checkpoint, as if `num_steps`
            were reached. A rerun continues only if `on_log` is removed. Its exceptions end the run.
        stalled_seconds: if no step finishes within this time, log which process is behind and its current phase.

    Raises:
        ValueError: a setting is invalid, the checkpoint in `run_dir` does not match, another process is training
            there, or too many steps were skipped.
        Stopped: after Ctrl-C or a signal of the scheduler, once a checkpoint is written.
        OSError: a checkpoint cannot be written, the data cannot be read, or another process has ended (LostProcess).
    """
    check_settings(locals())
    run_dir = local_path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    parallel = parallels["DDP"]() if parallel is None else parallel
    check_objects(codec, dataset, parallel, shuffle, keep_best, monitor)
    place = local_device(choose_device(device))
    numerics, compiled = choose_precision(precision, place), choose_compile(compile, place)
    with process_group(place) as processes:
        processes.check(batch_size, accumulate)
        torch.manual_seed(seed)
        loss_of = objective(channels=codec.for_image_size(dataset.image_size).channels, num_classes=dataset.num_classes)
        loss_of.with_parts_of(codec)
        model_arguments = loss_of.model_arguments(codec, dataset)
        if check_memory:
            with torch.random.fork_rng(devices=[]):
                check_step_memory(
                    model, model_arguments, loss_of, device=place, compiled=compiled, processes=processes,
                    parallel=parallel, batch_size=batch_size, accumulate=accumulate, precision=numerics,
                    optimizer=optimizer, ema=ema,
                )  # fmt: skip
        parallel.check(loss_of)
        net = loss_of.attach(build_model(model, model_arguments)).to(place)
        loss_of.check_model(net)
        if initial_weights is not None and not list_checkpoints(run_dir):
            log.info("%s", warm_start(net, initial_weights))
        codec.to(place)
        log.info("attention: %s", choose_attention_of(net, place, numerics.dtype))
        num_parameters = sum(p.numel() for p in net.parameters())
        tokens = f", {net.fusion.num_tokens} tokens" if isinstance(net, DiffusionTransformer) else ""
        log.info("model: %.2f M parameters%s", num_parameters / 1e6, tokens)
        if processes.size > 1:
            parallel.distribute(net, processes, compiled=compiled)
            log.info("%d processes, %s", processes.size, type(parallel).__name__)
        optim, average = make_optimizer(optimizer, net), ema(model=net)
        take_step = TrainingStep(
            codec=codec, model=net, objective=loss_of, optimizer=optim, ema=average, precision=numerics,
            accumulate=accumulate, max_grad_norm=max_grad_norm, warmup_steps=warmup_steps, schedule=schedule,
            seed=seed, compiled=compiled, processes=processes, parallel=parallel,
        )  # fmt: skip
        keep = (keep_checkpoints, keep_every, keep_best)
        state = TrainingState(run_dir, codec, net, optim, average, processes, parallel, keep)
        record = state.begin(model_arguments, loss_of, dataset, seed=seed, monitor=monitor, schedule=schedule)
        step = record["step"]

        with Guards(
            state, take_step, record, dataset=dataset, num_steps=num_steps, batch_size=batch_size, shuffle=shuffle,
            log_every=log_every, max_skipped_steps=max_skipped_steps, stalled_seconds=stalled_seconds,
            on_log=on_log,
        ) as guards:  # fmt: skip
            observe = Observer(
                guards, loss_of.process, partial(build_model, model, model_arguments), preview=preview,
                preview_every=preview_every, preview_images=preview_images, monitor=monitor,
                monitor_every=monitor_every,
            )  # fmt: skip
            net.train()
            for batch in guards.batches():  # the rows of this process, on its device
                losses = take_step(batch, step)  # encode, corrupt, predict, backward, optimizer, EMA
                step += 1
                guards.after(losses)  # counts and logs; raises after too many skipped steps
                measurements = observe(step)  # draws previews and runs the monitor when they are due
                state.save_snapshot(step)  # of the weight averages, to choose their length after training
                due = step % checkpoint_every == 0 or step == num_steps
                due |= keep_best is not None and measurements is not None
                guards.checkpoint(due, measurements)  # raises Stopped after a signal
    return state.folder(step)
