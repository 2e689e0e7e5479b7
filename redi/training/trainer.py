"""The one training loop."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch

from redi.core.ema import EMA, AveragedWeights
from redi.core.objective import JointObjective
from redi.core.registry import configurable, external
from redi.core.snr_table import noise_table, spreads
from redi.data.loader import batches, check_shuffle
from redi.models.codec import JointCodec
from redi.models.transformer import DiffusionTransformer
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import Retention, check_best, checkpoint_dir, list_checkpoints
from redi.runtime.device import choose_compile, choose_device, choose_precision, own_gpu
from redi.runtime.distributed import Vote, as_lost_process, process_group
from redi.runtime.interrupt import Stopped, StopRequest
from redi.runtime.log import Line, RunLog, Window
from redi.runtime.progress import progress
from redi.runtime.watchdog import Watchdog
from redi.sampling.generate import generate
from redi.sampling.pictures import ColourBasis
from redi.training.diagnosis import diagnosed
from redi.training.nonfinite import SkipGuard
from redi.training.parallel import Parallel, parallels
from redi.training.parallel.ddp import DDP
from redi.training.previews import Previews
from redi.training.settings import check_data, check_settings
from redi.training.snapshots import drop_snapshots
from redi.training.state import TrainingState
from redi.training.step import TrainingStep
from redi.training.warm_start import warm_start

log = logging.getLogger(__name__)

# Paper, section 4.1: constant rate, no weight decay.
ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)

external(torch.optim.AdamW, module="torch.optim", harmless=("fused",))
external(torch.optim.Adam, module="torch.optim")
external(torch.optim.SGD, module="torch.optim")


@configurable(
    runtime=("run_dir",),
    trains=True,
    harmless=(
        "num_steps", "accumulate", "parallel", "device", "compile", "max_skipped_steps", "stalled_seconds",
        "log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "keep_best",
        "preview", "preview_every", "preview_images", "monitor", "monitor_every",
    ),
)  # fmt: skip
def train(
    run_dir: str | Path,
    *,
    codec: JointCodec,
    dataset,
    model: Callable[..., DiffusionTransformer] = DiffusionTransformer,
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
    stalled_seconds: float = 120.0,
) -> Path:
    """Trains a joint model and writes checkpoints, log and previews to `run_dir`; run again, it resumes.

    On the CPU, a run that was stopped and resumed is bit-equal to one that was not: every random number is a function
    of (seed, step) and of the sample's row in the batch. Started by torchrun or srun, all processes train one model
    (docs/launch.md); their number changes no sample, no noise, and the loss by rounding alone.

    Args:
        codec: fitted, see `prepare`.
        dataset: what `prepare` returned: a `Cache`, or a `Dataset` to encode in every step.
        model, objective, optimizer, ema: classes (or functions) that are called here with what only the loop knows:
            channels, grid and number of classes; the model's parameters.
        parallel: how several processes share the work; default: `DDP`.
        batch_size: images per step, of all processes together; each computes its share in `accumulate` equal parts.
        initial_weights: begin with the weights of a plain or smaller model: a published checkpoint or a run's folder;
            see `warm_start`.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        max_skipped_steps: a step whose gradient is not finite changes nothing; after more than so many of them since
            the last checkpoint training stops, and says where the first such number arose.
        warmup_steps: the learning rate rises linearly over so many steps, then stays.
        precision: 'float32', 'tf32' (float32 whose products a GPU may round), 'bfloat16' (autocast), or 'auto':
            bfloat16 on a GPU that has it.
        compile: corruption, network and losses as one graph (torch.compile): a minute at the start, then faster steps;
            'auto': on a GPU.
        shuffle: 'global', or 'shards', which reads rows that lie together one after the other: for a cache larger than
            memory, or streamed (see `redi.data.loader.batches`).
        keep_checkpoints, keep_every, keep_best: which checkpoints stay: the newest so many, those of every so many
            steps, and the best by what the monitor measures, as 'lowest frechet_distance_..._of_500' (with it, a
            checkpoint is written whenever the monitor has measured).
        preview: draws the periodic sample grids: `generate`, possibly with other settings than the final sampling.
        monitor: measures the EMA weights during training (`redi.evaluation.monitor.Monitor`, prepared); what it gives
            is logged as monitor/<name>.
        stalled_seconds: after so long without a step the log says which process is behind, and in what.

    Returns:
        The last checkpoint's folder.

    Raises:
        ValueError: settings that cannot work, a checkpoint in `run_dir` that does not fit, another process that is
            training there, or too many gradients that are not finite.
        Stopped: after Ctrl-C or a signal of a scheduler, once a checkpoint is written.
        OSError: a checkpoint could not be written, or the data not read; LostProcess: another process is gone.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    check_shuffle(shuffle)
    check_settings(
        num_steps=num_steps, batch_size=batch_size, accumulate=accumulate, log_every=log_every,
        checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints, preview_every=preview_every,
        preview_images=preview_images, monitor_every=monitor_every,
    )  # fmt: skip
    check_data(codec, dataset)
    check_best(keep_best, monitor)
    retention = Retention(keep_checkpoints, keep_every, keep_best)
    parallel = DDP() if parallel is None else parallel
    parallels.check(parallel, "train.parallel")
    device = own_gpu(choose_device(device))
    how, compiled = choose_precision(precision, device), choose_compile(compile, device)
    with ExitStack() as exits:
        processes = exits.enter_context(process_group(device))
        processes.check(batch_size, accumulate)
        first = processes.is_first  # rank 0 writes, draws and measures for all
        torch.manual_seed(seed)
        loss_of = objective(channels=codec.channels, num_classes=dataset.num_classes)
        model_arguments = loss_of.model_arguments(codec, dataset)
        net = model(**model_arguments).to(device)
        loss_of.check_model(net)
        if initial_weights is not None and not list_checkpoints(run_dir):
            log.info("%s", warm_start(net, initial_weights))
        codec.to(device)
        log.info("attention: %s", net.choose_attention(device, how.dtype))
        num_parameters = sum(p.numel() for p in net.parameters())
        log.info("model: %.2f M parameters, %d tokens", num_parameters / 1e6, net.fusion.num_tokens)
        if processes.size > 1:
            parallel.distribute(net, processes, compiled=compiled)
            log.info("%d processes, %s", processes.size, type(parallel).__name__)
        optim, average = optimizer(net.parameters()), ema(model=net)
        take_step = TrainingStep(
            codec=codec, model=net, objective=loss_of, optimizer=optim, ema=average, precision=how,
            accumulate=accumulate, max_grad_norm=max_grad_norm, warmup_steps=warmup_steps, seed=seed,
            compiled=compiled, processes=processes, parallel=parallel,
        )  # fmt: skip

        state = TrainingState(run_dir, codec, net, optim, average, processes, parallel, retention)
        step, window = 0, Window()
        if (resumed := state.resume(seed=seed, dataset=dataset)) is not None:
            colours, record = ColourBasis(resumed[0]["colours"]), resumed[1]
            step, window, spread = record["step"], Window(record["window"]), record["spread"]
            del resumed  # a second copy of model, EMA and optimizer
            if step >= num_steps:
                log.info("nothing to train: it holds step %d of train.num_steps = %d", step, num_steps)
        else:
            some = codec.encode_sample(dataset)  # (n, C, H, W)
            colours, spread = ColourBasis.fit(codec.channels, some), spreads(codec.channels, some)
            del some
        if first:
            log.info("%s", noise_table(codec.channels, loss_of.process, loss_of.weights, spread))
        state.extra = {"colours": colours.tensors}
        state.description = {
            "model_arguments": model_arguments | {"channels": dict(codec.channels)},
            "image_size": dataset.image_size, "seed": seed, "dataset": dataset.fingerprint(), "spread": spread,
            "codec": codec.provenance(), "codec_fingerprint": codec.fingerprint(),
        }  # fmt: skip

        reading = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle, "rows": processes.rows(batch_size)}
        previews = Previews(
            run_dir, codec, loss_of.process, colours,
            num_classes=dataset.num_classes, num_images=preview_images, draw=preview,
        )  # fmt: skip
        processes.on_first(lambda: exits.enter_context(only_process(run_dir)))
        processes.on_first(lambda: drop_snapshots(run_dir, after=step))
        run_log = exits.enter_context(closing(RunLog(run_dir, step))) if first else None
        watchdog = exits.enter_context(
            Watchdog(processes.rank, processes.size, processes.store, stalled_seconds=stalled_seconds)
        )
        stop = exits.enter_context(StopRequest())
        data = exits.enter_context(
            closing(batches(dataset, start=step, stop=num_steps, pin=device.type == "cuda", **reading))
        )
        options = {"desc": "training", "unit": "step", "smoothing": 0.1, "leave": True, "disable": not first}
        bar = exits.enter_context(progress(total=num_steps, initial=step, **options))
        if processes.size > 1:
            exits.enter_context(as_lost_process(network_only=True))

        pending: list[Line] = []  # of the log: their numbers are on the way from the device

        def write_lines() -> None:
            while pending:
                line = pending.pop(0)
                means, rate = line.means.get(), line.steps_per_second * batch_size
                if first:
                    run_log.scalars(line.step, **means, images_per_second=rate, learning_rate=line.learning_rate)
                    bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.0f} img/s", refresh=False)

        def save(**measured: float) -> None:
            write_lines()
            skipped.arrived(wait=True)
            window.totals = processes.mean(window.totals)
            watchdog.at(step, "writing a checkpoint")
            state.save(step, window=window.state(), monitor=measured)
            skipped.reset()
            window.restart_clock()

        began, saved, skipped, vote = step, step, SkipGuard(max_skipped_steps, warns=first), Vote(processes)
        net.train()
        if compiled and step < num_steps:
            log.info("compiling at the first step: a minute or two")
        while step < num_steps:
            watchdog.at(step, "waiting for data")
            try:
                batch = next(data)
            except Exception:  # whatever a data set raises: the training itself is whole
                if processes.size == 1 and saved < step:
                    save()
                    log.warning("the data of step %d cannot be read; all steps before it are saved", step + 1)
                raise
            watchdog.at(step, "compiling" if compiled and step == began else "computing")
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            taken = take_step(batch, step)
            if compiled and step == began:
                window.restart_clock()  # the first step compiled
            window.add(taken)
            step += 1
            bar.update()
            write_lines()  # of the step before, now that the device has this one to do
            skipped.arrived(wait=True)  # up to the step before too, and so alike on all processes
            skipped.add(step - 1, taken["skipped"])
            if skipped.exceeded:
                raise ValueError(diagnosed(run_dir, skipped, take_step, dataset, reading))

            draws, ends = step % preview_every == 0, step == num_steps
            measures = monitor is not None and (step % monitor_every == 0 or ends)
            if step % log_every == 0 or ends:
                if first:
                    watchdog.end_window()
                window.totals = processes.mean(window.totals)
                rate = optim.param_groups[0]["lr"]
                pending.append(Line(step, window.means(), window.steps_per_second(), rate))
                if step % log_every == 0:
                    window = Window()
            measured: dict[str, float] = {}
            if draws or measures:
                write_lines()
                # Collected by all, used by rank 0, for which the others wait at the next step.
                weights = parallel.gathered(average.parameters)
                whole = net
                if first and processes.size > 1 and not parallel.keeps_whole:
                    whole = model(**model_arguments).to(device)
            if draws and first:
                watchdog.at(step, "drawing a preview")
                run_log.picture(step, "samples", previews(whole, weights, step))
            if measures and first:
                watchdog.at(step, "measuring")
                measured = monitor(whole, codec, loss_of.process, weights=weights)
                run_log.scalars(step, **{f"monitor/{name}": value for name, value in measured.items()})
                log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
            if draws or measures:
                del weights, whole
                window.restart_clock()
            state.save_snapshot(step)
            signalled = vote.cast(stop.requested or 0)
            if step % checkpoint_every == 0 or ends or signalled or (measures and keep_best):
                save(**measured)
                saved = step
            if signalled:
                raise Stopped(signalled, step)
        vote.result()
    return checkpoint_dir(run_dir, step)
