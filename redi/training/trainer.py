"""The one training loop."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from redi.core.ema import EMA, AveragedWeights
from redi.core.objective import JointObjective
from redi.core.registry import configurable
from redi.models.codec import JointCodec
from redi.models.interface import Model, build_model, choose_attention_of
from redi.models.transformer import DiffusionTransformer
from redi.runtime.device import choose_compile, choose_device, choose_precision, local_device
from redi.runtime.distributed import process_group
from redi.runtime.paths import local_path
from redi.sampling.generate import generate
from redi.training.guards import Guards, check_objects, check_settings, make_optimizer
from redi.training.memory import check_memory as check_step_memory
from redi.training.observer import Observer
from redi.training.parallel import Parallel, parallels
from redi.training.state import TrainingState
from redi.training.step import TrainingStep
from redi.training.warm_start import begin_with

log = logging.getLogger(__name__)

# Paper, section 4.1: constant rate, no weight decay.
ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)

configurable(torch.optim.AdamW, module="torch.optim", harmless=("fused",))
configurable(torch.optim.Adam, module="torch.optim")
configurable(torch.optim.SGD, module="torch.optim")


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
    model: Callable[..., Model] = DiffusionTransformer,
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
    """Train a joint model and write checkpoints, log and previews to `run_dir` -> the last checkpoint; it resumes.

    On the CPU, a run that was stopped and resumed is bit-equal to one that was not: every random number is a function
    of (seed, step) and of the sample's row in the batch. Started by torchrun or srun, all processes train one model
    (docs/launch.md); their number changes no sample and no noise, and the loss by rounding alone.

    Args:
        codec: fitted, see `prepare`.
        dataset: what `prepare` returned: a `Cache`, or a `Dataset` to encode in every step.
        model, objective, optimizer, ema: classes (or functions), called here with what only the loop knows: channels,
            grid and number of classes; the model's parameters. The model is any `redi.models.interface.Model`.
        parallel: how several processes share the work; default: `DDP`.
        batch_size: images per step, of all processes together; each computes its share in `accumulate` equal parts.
        initial_weights: a published checkpoint or a run's folder, of a plain or smaller model; see `warm_start`.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        max_skipped_steps: a step whose gradient is not finite changes nothing; after more of them since the last
            checkpoint, training stops and reports where the first such number arose.
        warmup_steps: the learning rate rises linearly over these steps, then stays.
        precision: 'float32', 'tf32' (float32 whose products a GPU may round), 'bfloat16' (autocast), or 'auto':
            bfloat16 on a GPU that has it.
        compile: corruption, network and losses as one graph (torch.compile): a minute at the start, then faster steps;
            'auto': on a GPU.
        check_memory: log the predicted memory of a step, and refuse one that cannot fit, before the first.
        shuffle: 'global', or 'shards' for a cache larger than memory, or streamed (see `redi.data.loader.batches`).
        keep_checkpoints, keep_every, keep_best: which checkpoints stay: this many of the newest, those at multiples of
            a step, and the best by what the monitor measures, as 'lowest frechet_distance_..._of_500' (with it, a
            checkpoint is written whenever the monitor has measured).
        preview: draws the periodic sample grids: `generate`, possibly with other settings than the final sampling.
        monitor: measures the EMA weights during training (`redi.evaluation.monitor.Monitor`, prepared); its results are
            logged as monitor/<name>.
        on_log: called on rank 0 with every line of the log, {"step": ..., "loss": ..., ...}, and with every checkpoint,
            {"step": ..., "checkpoint": path}. Where it returns True, the training ends with a checkpoint, as if
            `num_steps` were reached; run again, it goes on only without `on_log`. What it raises ends the run.
        stalled_seconds: after this time without a step the log says which process is behind, and in what.

    Raises:
        ValueError: settings that cannot work, a checkpoint in `run_dir` that does not fit, another process that is
            training there, or too many gradients that are not finite.
        Stopped: after Ctrl-C or a signal of a scheduler, once a checkpoint is written.
        OSError: a checkpoint could not be written, or the data not read; LostProcess: another process is gone.
    """
    check_settings(locals())
    run_dir = local_path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    parallel = parallels["DDP"]() if parallel is None else parallel
    check_objects(codec, dataset, parallel, shuffle, keep_best, monitor)
    device = local_device(choose_device(device))
    how, compiled = choose_precision(precision, device), choose_compile(compile, device)
    with process_group(device) as processes:
        processes.check(batch_size, accumulate)
        torch.manual_seed(seed)
        loss_of = objective(channels=codec.channels, num_classes=dataset.num_classes)
        model_arguments = loss_of.model_arguments(codec, dataset)
        if check_memory:
            with torch.random.fork_rng(devices=[]):
                check_step_memory(
                    model, model_arguments, loss_of, device=device, compiled=compiled, processes=processes,
                    parallel=parallel, batch_size=batch_size, accumulate=accumulate, precision=how,
                    optimizer=optimizer, ema=ema,
                )  # fmt: skip
        net = build_model(model, model_arguments).to(device)
        loss_of.check_model(net)
        begin_with(net, initial_weights, run_dir)
        codec.to(device)
        log.info("attention: %s", choose_attention_of(net, device, how.dtype))
        num_parameters = sum(p.numel() for p in net.parameters())
        tokens = f", {net.fusion.num_tokens} tokens" if isinstance(net, DiffusionTransformer) else ""
        log.info("model: %.2f M parameters%s", num_parameters / 1e6, tokens)
        if processes.size > 1:
            parallel.distribute(net, processes, compiled=compiled)
            log.info("%d processes, %s", processes.size, type(parallel).__name__)
        optim, average = make_optimizer(optimizer, net.parameters()), ema(model=net)
        take_step = TrainingStep(
            codec=codec, model=net, objective=loss_of, optimizer=optim, ema=average, precision=how,
            accumulate=accumulate, max_grad_norm=max_grad_norm, warmup_steps=warmup_steps, seed=seed,
            compiled=compiled, processes=processes, parallel=parallel,
        )  # fmt: skip
        keep = (keep_checkpoints, keep_every, keep_best)
        state = TrainingState(run_dir, codec, net, optim, average, processes, parallel, keep)
        record = state.begin(model_arguments, loss_of, dataset, seed=seed, monitor=monitor)
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
            for batch in guards.batches():  # this process's rows of a step, on its device
                losses = take_step(batch, step)  # encode, corrupt, predict, backward, optimizer, EMA
                step += 1
                guards.after(losses)  # counts and logs; raises after too many gradients that are not finite
                measurements = observe(step)  # previews and the monitor, when they are due
                state.save_snapshot(step)  # of the averages, for lengths that are chosen after training
                due = step % checkpoint_every == 0 or step == num_steps
                due |= keep_best is not None and measurements is not None
                guards.checkpoint(due, measurements)  # raises Stopped once a signal asked for it
    return state.folder(step)
