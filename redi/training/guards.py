"""Checks of the settings before training, and guards around the training loop."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

from torch import Tensor

from redi.data.cache.cache import EncodedRows
from redi.data.loader import batches, check_shuffle
from redi.runtime.atomic import only_process
from redi.runtime.checkpoint import check_best
from redi.runtime.distributed import Vote, as_lost_process
from redi.runtime.interrupt import Stopped, StopRequest
from redi.runtime.log import AsyncScalars, LogWindow, RunLog
from redi.runtime.progress import progress
from redi.runtime.ranges import SEED, check_number
from redi.runtime.watchdog import COMPUTING, WAITING, Watchdog
from redi.training.nonfinite import SkipGuard, diagnosis
from redi.training.parallel import parallels
from redi.training.schedules import schedules
from redi.training.snapshots import drop_snapshots
from redi.training.state import TrainingState
from redi.training.step import TrainingStep

log = logging.getLogger(__name__)


COUNTS = (
    "num_steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every",
    "preview_every", "preview_images", "monitor_every",
)  # fmt: skip
NUMBERS: dict[str, dict] = {  # of `train`: the arguments of `check_number`
    **{name: {"least": 1} for name in COUNTS},
    "warmup_steps": {"least": 0, "note": "0 disables warm-up"},
    "max_skipped_steps": {"least": 0, "note": "0 tolerates none"},
    "seed": SEED,
    "max_grad_norm": {"least": 0, "whole": False, "note": "0 disables clipping"},
    "stalled_seconds": {"least": 0, "whole": False, "below": 1e9, "note": "0 disables the report"},
}

END = 1  # the vote to end training by `train.on_log`; the numbers of signals are larger and take precedence


def check_settings(settings: Mapping) -> None:
    """Raise ValueError for a number out of range, a wrong `accumulate` or `on_log`, or a `schedule` that fails."""
    for name, rule in NUMBERS.items():
        if name != "keep_every" or settings[name] is not None:
            check_number(f"train.{name}", settings[name], **rule)
    if settings["batch_size"] % settings["accumulate"]:
        batch_size = f"train.batch_size = {settings['batch_size']}"
        raise ValueError(f"train.accumulate = {settings['accumulate']} must divide {batch_size}")
    if (schedule := settings["schedule"]) is not None:
        if inspect.isclass(schedule) or not callable(schedule):
            schedules.check(schedule, "train.schedule")
        check_number("train.schedule: the factor in step 0", schedule(0), 0, whole=False)
    if (on_log := settings["on_log"]) is not None and (inspect.isclass(on_log) or not callable(on_log)):
        how = "bind a function without parentheses, @my_function, or an object with them, @MyClass()"
        raise ValueError(f"train.on_log = {on_log!r} must be a function: {how}")


def check_objects(codec, dataset, parallel, shuffle: str, keep_best: str | None, monitor) -> None:
    """Raise ValueError for a codec that is not fitted, a cache of another codec, or objects of the wrong kind."""
    check_shuffle(shuffle)
    if not codec.fitted:
        raise ValueError("the codec is not fitted: call prepare(codec=..., dataset=...) and train on its result")
    if hasattr(dataset, "check"):  # encoded rows belong to one codec
        dataset.check(codec)
    check_best(keep_best, monitor)
    parallels.check(parallel, "train.parallel")


class Guards:
    """Context of the training loop: the run's lock, signals, the watchdog, skipped steps, and the log.

    The loop takes its batches from `batches`, and calls `after` and `checkpoint` after each step. If the data cannot be
    read, a checkpoint of the steps so far is written and the error ends the run. `record`: see `TrainingState.begin`.
    """

    def __init__(
        self, state: TrainingState, take_step: TrainingStep, record: Mapping, *, dataset, num_steps: int,
        batch_size: int, shuffle: str, log_every: int, max_skipped_steps: int, stalled_seconds: float,
        on_log: Callable[[dict], bool | None] | None = None,
    ):  # fmt: skip
        self.state, self.take_step, self.processes, self.dataset = state, take_step, state.processes, dataset
        self.step = self.saved = self.began = record["step"]
        self.num_steps, self.batch_size, self.log_every = num_steps, batch_size, log_every
        self.window = LogWindow(record["window"])
        self.pending: list[tuple[int, AsyncScalars, dict[str, float]]] = []  # log entries still on the device
        end = take_step.objective.alignment.end_step if take_step.codec.alignments else None
        self.alignment_off = None if end is None else max(end, self.began)  # its first step here; it compiles again
        self.skipped = SkipGuard(max_skipped_steps, warns=self.processes.is_first)
        rows = self.processes.rows(batch_size)
        self.reading: dict[str, Any] = {
            "batch_size": batch_size, "seed": take_step.seed, "shuffle": shuffle, "rows": rows
        }  # fmt: skip
        rank, size, store = self.processes.rank, self.processes.size, self.processes.store
        self.watchdog = Watchdog(state.run_dir, rank, size, store, stalled_seconds=stalled_seconds)
        self.vote, self.stop = Vote(self.processes), StopRequest("training stops after this step, with a checkpoint")
        self.on_log, self.wants_end = on_log, False
        if on_log is not None and record.get("ended_early"):
            log.info("train.on_log ended training at step %d: remove it to continue training", self.step)
            self.num_steps = self.step

    def __enter__(self) -> "Guards":
        if self.step >= self.num_steps:
            log.info("nothing to train: the checkpoint is at step %d of %d", self.step, self.num_steps)
        first, run_dir = self.processes.is_first, self.state.run_dir
        with ExitStack() as exits:
            self.processes.on_first(lambda: exits.enter_context(only_process(run_dir)))
            self.processes.on_first(lambda: drop_snapshots(run_dir, after=self.step))
            self.log = exits.enter_context(closing(RunLog(run_dir, self.step))) if first else None
            exits.enter_context(self.watchdog)
            exits.enter_context(self.stop)
            pin = self.state.device.type == "cuda"
            ends: dict[str, int] = {}
            if self.alignment_off is not None and isinstance(self.dataset, EncodedRows):
                ends = dict.fromkeys(self.take_step.codec.alignments, self.alignment_off)
            reader = batches(self.dataset, start=self.step, stop=self.num_steps, pin=pin, ends=ends, **self.reading)
            self.data = exits.enter_context(closing(reader))
            options = {"desc": "training", "unit": "step", "smoothing": 0.1, "leave": True, "disable": not first}
            self.bar = exits.enter_context(progress(total=self.num_steps, initial=self.step, **options))
            if self.processes.size > 1:
                exits.enter_context(as_lost_process(network_only=True))
            exits.push(self._finish)
            self.exits = exits.pop_all()
        return self

    def __exit__(self, *error) -> bool | None:
        return self.exits.__exit__(*error)

    def _finish(self, _kind, error, _trace) -> None:
        if error is None:
            self.vote.result()
        data_failed = isinstance(error, Exception) and self.watchdog.progress[1] == WAITING
        if data_failed and self.processes.size == 1 and self.saved < self.step:  # the weights are good
            self._save()
            log.warning("the data of step %d cannot be read; all steps before it are saved", self.step + 1)

    def at(self, phase: str) -> None:
        """Tell the watchdog the phase of the loop."""
        self.watchdog.at(self.step, phase)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield this process's rows of each remaining step, on the model's device."""
        compiles = self.take_step.compiled
        if compiles and self.step < self.num_steps:
            log.info("the first step compiles the model, which takes a minute or two")
        while self.step < self.num_steps:
            self.at(WAITING)
            batch = next(self.data)
            if self.step == self.alignment_off:
                end = self.take_step.objective.alignment.end_step  # earlier than this step in a resumed run
                log.info("REPA's alignment ended at step %d (JointObjective.alignment_end_step)", end)
            self.at("compiling" if compiles and self.step in (self.began, self.alignment_off) else COMPUTING)
            yield {name: tensor.to(self.state.device, non_blocking=True) for name, tensor in batch.items()}

    def after(self, losses: Mapping[str, Tensor]) -> None:
        """Count and log a step without waiting for the device. Raises ValueError after too many skipped steps."""
        if self.take_step.compiled and self.step in (self.began, self.alignment_off):
            self.window.restart_clock()
        self.window.add(losses)
        self.step += 1
        self.bar.update()
        self.write_lines()  # of the previous step, while the device computes this one
        too_many = self.skipped.exceeded()  # also up to the previous step, and so equal on all processes
        self.skipped.add(self.step - 1, losses["skipped"])
        if too_many:
            raise ValueError(diagnosis(self.state.run_dir, self.skipped, self.take_step, self.dataset, self.reading))
        if self.step % self.log_every == 0 or self.step == self.num_steps:
            self.watchdog.end_window()
            self.window.totals = self.processes.mean(self.window.totals)
            values = {"images_per_second": self.window.steps_per_second() * self.batch_size}
            values["learning_rate"] = self.state.optimizer.param_groups[0]["lr"]
            self.pending.append((self.step, self.window.means(), values))
            if self.step % self.log_every == 0:
                self.window = LogWindow()

    def write_lines(self) -> None:
        """Write the pending log entries, waiting for their values from the device."""
        for step, means, values in self.pending:
            scalars = means.get()
            if self.log is not None:
                self.write_line(step, **scalars, **values)
                for remark in self.take_step.objective.remarks(scalars):
                    log.warning("step %d: %s", step, remark)
                rate = values["images_per_second"]
                self.bar.set_postfix_str(f"loss {scalars['loss']:.4f}, {rate:.0f} img/s", refresh=False)
        self.pending.clear()

    def write_line(self, step: int, **values: float) -> None:
        """Write a log entry and pass it to `train.on_log`; called on rank 0."""
        assert self.log is not None
        self.log.scalars(step, **values)
        self._report({"step": step, **values})

    def _report(self, record: dict) -> None:
        answer = self.on_log(record) if self.on_log is not None and self.processes.is_first else None
        if answer not in (None, False, True):
            raise ValueError(f"train.on_log returned {answer!r}: return True to end training, False or None otherwise")
        self.wants_end |= bool(answer)

    def checkpoint(self, due: bool, monitor: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint if one is due, if `train.on_log` ended training, or if a signal arrived.

        All processes call it after every step. After `train.on_log` returned True, this step is the last. After a
        signal to any process, raise Stopped. `monitor`: the measurements, for `train.keep_best`.
        """
        request = self.vote.cast(self.stop.requested or (END if self.wants_end else 0))
        ends = request == END and self.step < self.num_steps
        if due or request:
            self._save(monitor, **({"ended_early": True} if ends else {}))
        if ends:
            log.info("train.on_log ended training at step %d of %d", self.step, self.num_steps)
            self.num_steps = self.step
        elif request > END:
            raise Stopped(request, self.step)

    def _save(self, monitor: Mapping[str, float] | None = None, **record) -> None:
        self.write_lines()
        self.skipped.exceeded()
        self.window.totals = self.processes.mean(self.window.totals)
        self.at("writing a checkpoint")
        self.state.save(self.step, window=self.window.state(), monitor=monitor or {}, **record)
        self.skipped.reset()
        self.saved = self.step
        self._report({"step": self.step, "checkpoint": str(self.state.folder(self.step))})
        self.window.restart_clock()
