"""A watchdog: when training stands still, the log says which process is behind, and in what."""

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

WAITING, COMPUTING, ENDED = "waiting for data", "computing", "ended"  # computing includes waiting for gradients


class Report(NamedTuple):
    """Where a process is: steps taken, what it does now, and for how many seconds by its own clock."""

    host: str
    step: int
    phase: str
    seconds: float


class Watchdog:
    """Context of a training loop, which reports with `at` what it does; a thread watches.

    Every process publishes its report in `store` (TCPStore), which rank 0 reads; without one, each watches itself.
    After `stalled_seconds` (0: never) without a step rank 0 warns who is behind, in what, for how long; again after
    pauses that double; and when training resumes. A process that stalls writes the stacks of its threads to
    `run_dir/stacks_rank_0.txt`. A run is never ended.
    """

    def __init__(
        self, run_dir: Path, rank: int = 0, world_size: int = 1, store: "Store | None" = None, *,
        stalled_seconds: float = 120.0, host: str | None = None,
    ):  # fmt: skip
        check_number("train.stalled_seconds", stalled_seconds, 0, whole=False, note="0 is never")
        self.stacks, self.rank, self.stalled_seconds = Path(run_dir) / f"stacks_rank_{rank}.txt", rank, stalled_seconds
        self.store = store.clone() if store is not None and world_size > 1 else None  # the thread's own connection
        self.world_size, self.host = world_size if self.store else 1, host or socket.gethostname()
        self.place, self.stepped, self.dumped = (0, "starting", time.monotonic()), time.monotonic(), None
        self.spent: dict[str, float] = defaultdict(float)  # {phase: seconds}
        self.quiet = 0.0  # seconds for which slow data is not mentioned again
        self.latest: dict[int, tuple[Report, float]] = {}  # by rank, and when it was new
        self.moved, self.pause = 0.0, stalled_seconds
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.stalled_seconds:
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.at(self.place[0], ENDED)
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join(timeout=10)  # longer only if the store hangs; a daemon does not keep the process alive

    def at(self, step: int, phase: str) -> None:
        """The loop has taken this many steps and is in this phase: WAITING, COMPUTING, 'drawing a preview', ..."""
        now = time.monotonic()
        self.spent[self.place[1]] += now - self.place[2]
        self.stepped = now if step != self.place[0] else self.stepped
        self.place = (step, phase, now)

    def end_window(self) -> None:
        """Warn, ever more rarely, if this process mostly waited for data in the last 20 seconds or more."""
        total, share = sum(self.spent.values()), self.spent[WAITING]
        if self.stalled_seconds and total > max(20.0, self.quiet):
            if share > 0.5 * total:
                self.quiet = 2 * total
                log.warning("rank %d spent %.0f %% of its time waiting for data", self.rank, 100 * share / total)
            self.spent.clear()

    def _watch(self) -> None:
        try:
            while not self.ending.wait(min(5.0, self.stalled_seconds / 8)):
                self._publish()
            self._publish()
        except RuntimeError as error:  # of the store; if a process is gone, the next exchange of gradients says so
            cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
            log.warning("the watchdog of rank %d cannot reach the others any more: %s", self.rank, cause)

    def _publish(self) -> None:
        now, (step, phase, began) = time.monotonic(), self.place
        if now - self.stepped > self.stalled_seconds * 7 / 8 and self.dumped != step:  # just before rank 0 warns
            self.dumped = step
            with contextlib.suppress(OSError), open(self.stacks, "w") as file:  # a full disk
                faulthandler.dump_traceback(file)
        reports = {self.rank: Report(self.host, step, phase, now - began)}
        if self.rank and self.store:
            self.store.set(str(self.rank), json.dumps(reports[self.rank]))
        elif not self.ending.is_set():
            for rank in range(1, self.world_size):
                if self.store.check([str(rank)]):  # to get a key that is not there would wait for it
                    reports[rank] = Report(*json.loads(self.store.get(str(rank))))
            self.look(reports, now)

    def look(self, reports: Mapping[int, Report], now: float) -> None:
        """Warn if it is time to; `now` is this process's clock, the only one that counts."""
        before = {rank: report.step for rank, (report, _) in self.latest.items()}
        for rank, report in reports.items():
            if rank not in self.latest or self.latest[rank][0] != report:
                self.latest[rank] = report, now
        if before != {rank: report.step for rank, report in reports.items()}:
            if self.pause > self.stalled_seconds:
                step = max(report.step for report in reports.values())
                log.warning("training resumes at step %d after %.0f s", step, now - self.moved)
            self.moved, self.pause = now, self.stalled_seconds
        elif now - self.moved >= self.pause:
            self.pause *= 2
            patience = self.stalled_seconds / 2
            silent = {rank: now - heard for rank, (_, heard) in self.latest.items() if now - heard > patience and rank}
            text = slowest_first(reports, silent, self.world_size)
            log.warning("no step for %.0f s: %s; stacks in %s", now - self.moved, text, self.stacks.parent)


def slowest_first(reports: Mapping[int, Report], silent: Mapping[int, float], size: int) -> str:
    """Up to four processes that the others wait for: at the lowest step first, and of one step, those not computing.

    `silent`: seconds since the last report of ranks that are gone, halted or cut off.
    """
    places = dict.fromkeys(range(size), Report("?", -1, "never reached the training loop", 0.0)) | dict(reports)
    for rank, seconds in silent.items():
        phase = f"silent for {seconds:.0f} s (gone, halted or cut off) after {places[rank].phase}"
        places[rank] = places[rank]._replace(phase=phase)
    order = sorted(places.items(), key=lambda place: (place[1].step, place[1].phase == COMPUTING, place[0]))
    texts = [f"rank {rank} ({r.host}): {r.phase} at step {r.step} for {r.seconds:.0f} s" for rank, r in order[:4]]
    return "; ".join(texts) + (f"; and {size - 4} more" if size > 4 else "")
