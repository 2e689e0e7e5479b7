"""The one training loop."""

import logging
import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from redi.core.artefact import optimizer_tensors, restore_optimizer
from redi.core.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from redi.core.codec import JointCodec
from redi.core.device import choose_compile, choose_device, choose_precision
from redi.core.ema import EMA
from redi.core.generation import generate
from redi.core.interrupt import Stopped, StopRequest
from redi.core.lock import only_process
from redi.core.log import Line, RunLog, Window
from redi.core.noise_table import noise_table, spreads
from redi.core.objective import JointObjective
from redi.core.progress import progress
from redi.core.registry import configurable, external
from redi.core.step import TrainingStep
from redi.core.warm_start import warm_start
from redi.data.cache import EncodedRows
from redi.data.loader import batches, check_shuffle
from redi.evaluation.pictures import ColourBasis, num_columns, sample_grid
from redi.models.transformer import DiffusionTransformer

log = logging.getLogger(__name__)

# Paper, section 4.1: constant rate, no weight decay.
ADAMW = partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0, fused=True)

for _optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
    external(_optimizer, module="torch.optim")


@configurable(runtime=("run_dir",))
def train(
    run_dir: str | Path,
    *,
    codec: JointCodec,
    dataset,
    model: Callable[..., DiffusionTransformer] = DiffusionTransformer,
    objective: Callable[..., JointObjective] = JointObjective,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
    ema: Callable[..., EMA] = EMA,
    num_steps: int = 400_000,
    batch_size: int = 256,
    initial_weights: str | Path | None = None,
    accumulate: int = 1,
    max_grad_norm: float = 1.0,
    warmup_steps: int = 0,
    precision: str = "auto",
    compile: str | bool = "auto",
    device: str = "auto",
    seed: int = 0,
    shuffle: str = "global",
    log_every: int = 100,
    checkpoint_every: int = 10_000,
    keep_checkpoints: int = 2,
    preview: Callable = generate,
    preview_every: int = 10_000,
    preview_images: int = 40,
    monitor: Callable[..., dict[str, float]] | None = None,
    monitor_every: int = 10_000,
) -> Path:
    """Trains a joint model and writes checkpoints, log and previews to `run_dir`; run again, it resumes.

    On the CPU, a run that was stopped and resumed is bit-equal to one that was not: every random number of a
    step is a function of (seed, step).

    Args:
        codec: fitted, see `prepare`.
        dataset: what `prepare` returned: a `Cache`, or a `Dataset` to encode in every step.
        model, objective, optimizer, ema: classes (or functions) that are called here with what only the loop knows:
            channels, grid and number of classes; the model's parameters.
        batch_size: images per step, in `accumulate` equal parts.
        initial_weights: begin with the weights of a plain or smaller model: a published checkpoint or a run's folder;
            see `warm_start`.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        warmup_steps: the learning rate rises linearly over so many steps, then stays.
        precision: 'float32', 'tf32' (float32 whose products a GPU may round), 'bfloat16' (autocast), or 'auto':
            bfloat16 on a GPU that has it.
        compile: corruption, network and losses as one graph (torch.compile): a minute at the start, then faster steps;
            'auto': on a GPU.
        shuffle: 'global', or 'shards', which reads rows that lie together one after the other: for a cache larger than
            memory, or streamed (see `redi.data.loader.batches`).
        preview: draws the periodic sample grids: `generate`, possibly with other settings than the final sampling.
        monitor: measures the EMA weights during training (`redi.evaluation.monitor.Monitor`, prepared); what it gives
            is logged as monitor/<name>.

    Returns:
        The last checkpoint's folder.

    Raises:
        ValueError: settings that cannot work, a checkpoint in `run_dir` that does not fit, or another process that
            is training there.
        Stopped: after Ctrl-C or SIGTERM, once a checkpoint is written.
        OSError: a checkpoint could not be written.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    check_shuffle(shuffle)
    check_settings(
        num_steps=num_steps, batch_size=batch_size, accumulate=accumulate, log_every=log_every,
        checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints, preview_every=preview_every,
        preview_images=preview_images, monitor_every=monitor_every,
    )  # fmt: skip
    _check_data(codec, dataset)
    device = choose_device(device)
    if device.type == "cuda" and device.index is not None:  # pinned memory goes to the current one
        torch.cuda.set_device(device)
    how, compiled = choose_precision(precision, device), choose_compile(compile, device)

    torch.manual_seed(seed)
    loss_of = objective(channels=codec.channels, num_classes=dataset.num_classes)
    model_arguments = loss_of.model_arguments(codec, dataset)
    net = model(**model_arguments).to(device)
    loss_of.check_model(net)
    if initial_weights is not None and not list_checkpoints(run_dir):
        log.info("%s", warm_start(net, initial_weights))
    names = [name for name, _ in net.named_parameters()]
    optim = optimizer(net.parameters())
    average = ema(model=net)
    codec.to(device)
    log.info("attention: %s", net.choose_attention(device, how.dtype))
    take_step = TrainingStep(
        codec=codec, model=net, objective=loss_of, optimizer=optim, ema=average, precision=how, accumulate=accumulate,
        max_grad_norm=max_grad_norm, warmup_steps=warmup_steps, seed=seed, compiled=compiled,
    )  # fmt: skip
    num_parameters = sum(p.numel() for p in net.parameters())
    log.info("model: %.2f M parameters, %d tokens", num_parameters / 1e6, net.fusion.num_tokens)

    step, window = 0, Window()
    if checkpoints := list_checkpoints(run_dir):
        tensors, record = load_checkpoint(checkpoints[-1])
        _restore(checkpoints[-1], tensors, record, net, average, optim, names, codec)
        step, window, spread = record["step"], Window(record["window"]), record["spread"]
        colours = ColourBasis(tensors["colours"])
        if record["seed"] != seed:
            raise ValueError(f"{checkpoints[-1]} was trained with train.seed = {record['seed']}, not {seed}")
        if record["dataset"] != dataset.fingerprint():
            log.warning("the data are not those that %s was trained on", checkpoints[-1])
        del tensors  # a second copy of model, EMA and optimizer
        log.info("resuming from %s", checkpoints[-1])
        if step >= num_steps:
            log.info("nothing to train: it holds step %d of train.num_steps = %d", step, num_steps)
    else:
        some = codec.encode_sample(dataset)  # (n, C, H, W)
        colours, spread = ColourBasis.fit(codec.channels, some), spreads(codec.channels, some)
        del some
    log.info("%s", noise_table(codec.channels, loss_of.process, loss_of.weights, spread))

    description = {"model_arguments": model_arguments | {"channels": dict(codec.channels)}}
    description |= {"image_size": dataset.image_size, "seed": seed, "codec": codec.provenance()}
    description["codec_fingerprint"] = codec.fingerprint()
    description |= {"dataset": dataset.fingerprint(), "spread": spread}

    def save() -> None:
        optimizer_state, optimizer_record = optimizer_tensors(optim, names)
        state = {"model": net.state_dict(), "ema": average.parameters, "optimizer": optimizer_state}
        state |= {"codec": codec.learned_state(), "colours": colours.tensors}
        record = description | {"optimizer": optimizer_record, "window": window.state()}
        save_checkpoint(run_dir, step, state, record, keep_checkpoints)

    pending: list[Line] = []  # of the log: their numbers are on the way from the device

    def write_lines() -> None:
        while pending:
            line = pending.pop(0)
            means, rate = line.means.get(), line.steps_per_second * batch_size
            _require_finite(means["gradient_norm"], line.step)
            run_log.scalars(line.step, **means, images_per_second=rate, learning_rate=line.learning_rate)
            bar.set_postfix_str(f"loss {means['loss']:.4f}, {rate:.0f} img/s", refresh=False)

    first, pin = step, device.type == "cuda"
    reading = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle, "pin": pin}
    data = batches(dataset, start=step, stop=num_steps, **reading)
    bar = progress(total=num_steps, initial=step, desc="training", unit="step", smoothing=0.1, leave=True)
    net.train()
    if compiled and step < num_steps:
        log.info("compiling at the first step: a minute or two")
    with (
        only_process(run_dir), closing(RunLog(run_dir, step)) as run_log, StopRequest() as stop, closing(data), bar
    ):  # fmt: skip
        for batch in data:
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            taken = take_step(batch, step)
            if compiled and step == first:
                window.restart_clock()  # the first step compiled
            window.add(taken)
            step += 1
            bar.update()
            write_lines()  # of the step before, now that the device has this one to do

            draws, ends = step % preview_every == 0, step == num_steps
            measures = monitor is not None and (step % monitor_every == 0 or ends)
            if step % log_every == 0 or ends:
                rate = optim.param_groups[0]["lr"]
                pending.append(Line(step, window.means(), window.steps_per_second(), rate))
                if step % log_every == 0:
                    window = Window()
            if draws or measures:
                write_lines()
            if draws:
                columns = min(10, dataset.num_classes)  # one class a column
                labels = torch.arange(preview_images) % columns * dataset.num_classes // columns
                drawn = preview(net, codec, loss_of.process, labels=labels, weights=average.parameters)
                picture = sample_grid(drawn, codec, colours, columns=num_columns(labels))
                (run_dir / "previews").mkdir(exist_ok=True)
                picture.save(run_dir / "previews" / f"step_{step:08d}.png")
                run_log.picture(step, "samples", picture)
                window.restart_clock()
            if measures:
                measured = monitor(net, codec, loss_of.process, weights=average.parameters)
                run_log.scalars(step, **{f"monitor/{name}": value for name, value in measured.items()})
                log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
                window.restart_clock()
            stopping = stop.requested is not None
            if step % checkpoint_every == 0 or ends or stopping:
                write_lines()
                _require_finite(float(taken["gradient_norm"]), step)
                save()
                window.restart_clock()
            if stopping:
                raise Stopped(stop.requested, step)
    return list_checkpoints(run_dir)[-1]


def _require_finite(gradient_norm: float, step: int) -> None:
    """Before a log line or a checkpoint: after such a gradient the weights are not finite either."""
    if not math.isfinite(gradient_norm):
        raise ValueError(
            f"the gradient is {gradient_norm} at step {step}: lower the learning rate, or set "
            "train.precision = 'float32'; the checkpoints before are good"
        )


def check_settings(
    *, num_steps, batch_size, accumulate, log_every, checkpoint_every, keep_checkpoints, preview_every, preview_images,
    monitor_every,
) -> None:  # fmt: skip
    """Raises ValueError unless all are whole numbers of at least 1 and `accumulate` divides `batch_size`."""
    for name, value in locals().items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"train.{name} = {value!r}: a whole number of at least 1 is needed")
    if batch_size % accumulate:
        raise ValueError(f"train.accumulate = {accumulate} does not divide train.batch_size = {batch_size}")


def _check_data(codec: JointCodec, dataset) -> None:
    if not codec.fitted:
        raise ValueError("the codec is not fitted: call prepare(codec=..., dataset=...) and train on what it returns")
    if isinstance(dataset, EncodedRows):
        dataset.check(codec)


def _restore(folder: Path, tensors, record, net, average, optim, names, codec) -> None:
    """Puts a checkpoint into the objects of this run. Raises ValueError where it does not fit them."""
    if "optimizer" not in tensors:
        raise ValueError(
            f"{folder} was imported, not trained here, and holds no optimizer: to train on, begin another run with "
            f"train.initial_weights = {str(folder.parent.parent)!r}"
        )
    if (stored := record["model_arguments"]["channels"]) != dict(codec.channels):
        raise ValueError(f"{folder} was trained with channels {stored}, this run has {dict(codec.channels)}")
    if codec.fingerprint() != record["codec_fingerprint"]:
        raise ValueError(
            f"{folder} was trained with other encoders or reducers than the ones at hand: before prepare, call "
            "codec.load_learned_state(load_checkpoint(folder)[0]['codec']), as the programs do, or begin a new run"
        )
    try:
        net.load_state_dict(tensors["model"])
    except RuntimeError as error:
        raise ValueError(f"{folder} holds another model: {error}") from None
    average.load(tensors["ema"])
    restore_optimizer(optim, names, tensors["optimizer"], record["optimizer"])
