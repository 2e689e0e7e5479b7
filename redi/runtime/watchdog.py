"""A watchdog that logs which process holds up training, and in which phase."""

import contextlib
import faulthandler
import json
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from redi.runtime.ranges import check_number

if TYPE_CHECKING:  # absent from some builds of torch
    from torch.distributed import Store

log = logging.getLogger(__name__)

WAITING, COMPUTING, ENDED = "waiting for data", "computing", "ended"  # computing includes the exchange of gradients


class Report(NamedTuple):
    """The progress of a process: completed steps, current phase, and the seconds it has spent in that phase."""

    host: str
    step: int
    phase: str
    seconds: float


class Watchdog:
    """Context of a training loop. The loop reports its progress with `at`; a thread watches for stalls.

    Every process publishes a `Report` in `store` (a TCPStore), and rank 0 reads them all. Without a store, each process
    watches itself. If no process completes a step for `stalled_seconds` (0: never warn), rank 0 logs which processes
    are behind, in which phase and for how long. It repeats the warning after intervals that double, and logs when
    training resumes. A stalled process writes the stacks of its threads to `run_dir/stacks_rank_<rank>.txt`. The
    watchdog never ends a run.
    """

    def __init__(
        self, run_dir: Path, rank: int = 0, world_size: int = 1, store: "Store | None" = None, *,
        stalled_seconds: float = 120.0, host: str | None = None,
    ):  # fmt: skip
        check_number("train.stalled_seconds", stalled_seconds, 0, whole=False, note="0 disables the watchdog")
        self.stacks, self.rank, self.stalled_seconds = Path(run_dir) / f"stacks_rank_{rank}.txt", rank, stalled_seconds
        self.store: Store | None = None
        if store is not None and world_size > 1:
            self.store = store.clone()  # type: ignore[attr-defined]  # not in torch's stubs; a connection per thread
        self.world_size, self.host = world_size if self.store else 1, host or socket.gethostname()
        self.progress = (0, "starting", time.monotonic())  # step, phase, start of the phase
        self.last_step_time = time.monotonic()
        self.dumped_step: int | None = None
        self.phase_seconds: dict[str, float] = defaultdict(float)
        self.quiet_seconds = 0.0  # a shorter window does not repeat the warning about slow data
        self.latest: dict[int, tuple[Report, float]] = {}  # by rank: the last report and its time of arrival
        self.last_progress, self.pause = 0.0, stalled_seconds
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.stalled_seconds:
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.at(self.progress[0], ENDED)
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join(timeout=10)  # the store may hang; the daemon thread then ends with the process

    def at(self, step: int, phase: str) -> None:
        """Report `step` completed steps and the current phase: WAITING, COMPUTING, 'drawing a preview', ..."""
        now = time.monotonic()
        last_step, last_phase, phase_start = self.progress
        self.phase_seconds[last_phase] += now - phase_start
        self.last_step_time = now if step != last_step else self.last_step_time
        self.progress = (step, phase, now)

    def end_window(self) -> None:
        """Warn, at growing intervals, if most of the last window (at least 20 s) was spent waiting for data."""
        total, waiting = sum(self.phase_seconds.values()), self.phase_seconds[WAITING]
        if self.stalled_seconds and total > max(20.0, self.quiet_seconds):
            if waiting > 0.5 * total:
                self.quiet_seconds = 2 * total
                log.warning("rank %d spent %.0f %% of its time waiting for data", self.rank, 100 * waiting / total)
            self.phase_seconds.clear()

    def _watch(self) -> None:
        try:
            while not self.ending.wait(min(5.0, self.stalled_seconds / 8)):
                self._publish()
            self._publish()
        except RuntimeError as error:  # from the store; if a process is gone, the next exchange of gradients fails
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            log.warning("the watchdog of rank %d lost its connection to the other processes: %s", self.rank, cause)

    def _publish(self) -> None:
        now, (step, phase, phase_start) = time.monotonic(), self.progress
        stalled = now - self.last_step_time > self.stalled_seconds * 7 / 8  # slightly before rank 0 warns
        if stalled and self.dumped_step != step:
            self.dumped_step = step
            with contextlib.suppress(OSError), open(self.stacks, "w") as file:  # the disk may be full
                faulthandler.dump_traceback(file)
        reports = {self.rank: Report(self.host, step, phase, now - phase_start)}
        if self.rank and self.store:
            self.store.set(str(self.rank), json.dumps(reports[self.rank]))
        elif not self.ending.is_set():
            for rank in range(1, self.world_size):
                assert self.store is not None  # world_size is 1 without a store
                if self.store.check([str(rank)]):  # get() would block on a missing key
                    reports[rank] = Report(*json.loads(self.store.get(str(rank))))
            self.look(reports, now)

    def look(self, reports: Mapping[int, Report], now: float) -> None:
        """Warn about a stall or its end; `now` is the clock of this process, the only clock compared."""
        steps_before = {rank: report.step for rank, (report, _) in self.latest.items()}
        for rank, report in reports.items():
            if rank not in self.latest or self.latest[rank][0] != report:
                self.latest[rank] = report, now
        if steps_before != {rank: report.step for rank, report in reports.items()}:
            if self.pause > self.stalled_seconds:
                step = max(report.step for report in reports.values())
                log.warning("training resumed at step %d after a stall of %.0f s", step, now - self.last_progress)
            self.last_progress, self.pause = now, self.stalled_seconds
        elif now - self.last_progress >= self.pause:
            self.pause *= 2
            limit = self.stalled_seconds / 2
            ages = {rank: now - arrival for rank, (_, arrival) in self.latest.items()}
            silent = {rank: age for rank, age in ages.items() if age > limit and rank}
            text = slowest_first(reports, silent, self.world_size)
            log.warning("no step for %.0f s: %s; stacks in %s", now - self.last_progress, text, self.stacks.parent)


def slowest_first(reports: Mapping[int, Report], silent: Mapping[int, float], size: int) -> str:
    """Format the four processes that are furthest behind; `silent`: {rank: seconds since its last report}."""
    progress = dict.fromkeys(range(size), Report("?", -1, "never reached the training loop", 0.0)) | dict(reports)
    for rank, seconds in silent.items():
        phase = f"no report for {seconds:.0f} s (ended, suspended or disconnected) after {progress[rank].phase}"
        progress[rank] = progress[rank]._replace(phase=phase)
    order = sorted(progress.items(), key=lambda item: (item[1].step, item[1].phase == COMPUTING, item[0]))
    texts = [f"rank {rank} ({r.host}): {r.phase} at step {r.step} for {r.seconds:.0f} s" for rank, r in order[:4]]
    return "; ".join(texts) + (f"; and {size - 4} more" if size > 4 else "")
