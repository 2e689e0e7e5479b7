"""A watchdog: when training stands still, the log says which process is behind, and in what."""

import json
import logging
import socket
import sys
import sysconfig
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not there in every build of torch
    from torch.distributed import Store

log = logging.getLogger(__name__)

FOREIGN = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
WAITING = "waiting for data"
COMPUTING = "computing"  # and waiting for the other processes' gradients, which happens in it
ENDED = "ended"


@dataclass
class Report:
    """What a process says of itself. Ages are by its own clock: those of several machines need not agree.

    Attributes:
        step: how many it has taken.
        since: seconds that it has been in this phase of this step.
        where: the line of code that it is at, once it takes long.
        spent: {phase: seconds} since it began.
        number: counts its reports, so that a process that is silent can be told from one that waits.
    """

    host: str
    step: int
    phase: str
    since: float
    where: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    number: int = 0


class Watchdog:
    """Context of a training loop, which says with `at` what it does; a thread watches.

    Several processes publish where they are, every `interval` seconds, in a store that all can read (TCPStore); rank 0
    reads it. When no process has come to another step for `stalled_seconds` it warns: who is behind, for how long, in
    what; again after pauses that double; and when it goes on. It never ends a training. (Where rank 0 itself is gone,
    the others' next exchange of gradients fails and says so.)

    Args:
        rank, world_size: this process, of how many.
        store: of all of them, of this attempt alone; without one each process watches itself, and rank 0 warns.
        stalled_seconds: longer than a step takes; 0 switches the watchdog off.
        host: how to name this machine.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: "Store | None" = None,
        *,
        stalled_seconds: float = 120.0,
        host: str | None = None,
    ):
        if not 0 <= stalled_seconds < float("inf"):
            raise ValueError(f"train.stalled_seconds = {stalled_seconds}: a number of at least 0 is needed; 0 is never")
        self.rank, self.stalled_seconds = rank, stalled_seconds
        self.world_size = world_size if store is not None else 1
        self.store = store.clone() if self.world_size > 1 else None  # the thread's own connection
        self.host = host or socket.gethostname()
        self.interval = min(5.0, stalled_seconds / 8)
        self.main = threading.get_ident()
        self.place = (0, "starting", time.monotonic())
        self.spent: dict[str, float] = defaultdict(float)
        self.number = 0
        self.latest: dict[int, Report] = {}  # by rank
        self.stall = Stall(stalled_seconds, self.world_size)
        self.before: dict[int, dict[str, float]] = {}  # what each had spent when the window began
        self.quiet, self.windows = 1, 0
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
            self.thread.join(timeout=10)  # longer only where the store hangs; a daemon does not keep the process alive

    def at(self, step: int, phase: str) -> None:
        """The loop has taken so many steps and is in this phase: WAITING, COMPUTING, 'drawing a preview', ..."""
        now = time.monotonic()
        self.spent[self.place[1]] += now - self.place[2]
        self.place = (step, phase, now)

    def _watch(self) -> None:
        try:
            while not self.ending.wait(self.interval):
                self._publish()
                if self.rank == 0:
                    self._collect()
                    self.stall.look(self.latest, time.monotonic())
            self._publish()
        except RuntimeError as error:  # of the store: torch.distributed's errors
            # No fault of the training; where a process is gone, the next gradient that it owes says so.
            log.warning("the watchdog of rank %d cannot reach the others any more: %s", self.rank, _first_line(error))

    def _publish(self) -> None:
        step, phase, began = self.place
        since = time.monotonic() - began
        self.number += 1
        where = self._where(phase) if since > self.stalled_seconds / 2 else ""
        report = Report(self.host, step, phase, since, where, dict(self.spent), self.number)
        if self.rank == 0:
            self.latest[0] = report
        elif self.store is not None:
            self.store.set(str(self.rank), json.dumps(asdict(report)))

    def _collect(self) -> None:
        if self.store is None:
            return
        # Asked for first: to get a key that is not there would wait for it.
        there = [rank for rank in range(1, self.world_size) if rank in self.latest or self.store.check([str(rank)])]
        for rank, stored in zip(there, self.store.multi_get([str(rank) for rank in there]), strict=True):
            self.latest[rank] = Report(**json.loads(stored))

    def _where(self, phase: str) -> str:
        """The innermost line that is neither Python's nor a package's; of the reading thread, where the loop waits."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sys._current_frames()
        reading = [frames[ident] for ident in frames if phase == WAITING and names.get(ident, "").startswith("loader")]
        frame = reading[0] if reading else frames.get(self.main)
        while frame is not None and frame.f_code.co_filename.startswith(FOREIGN) and frame.f_back is not None:
            frame = frame.f_back
        return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame is not None else ""

    def end_window(self) -> None:
        """On rank 0, at a line of the log: warns, ever more rarely, where a process mostly waited for data."""
        if not self.stalled_seconds:
            return
        spent = {rank: report.spent for rank, report in dict(self.latest).items()}  # to which the thread adds
        passed = {rank: _difference(now, self.before.get(rank, {})) for rank, now in spent.items()}
        if sum(passed.get(0, {}).values()) < 4 * self.interval:  # what the others say is up to an interval old
            return
        self.before = spent
        shares = {rank: parts.get(WAITING, 0.0) / max(sum(parts.values()), 1e-9) for rank, parts in passed.items()}
        slowest = max(shares, key=shares.__getitem__)
        self.windows += 1
        if shares[slowest] <= 0.5 or self.windows < self.quiet:
            return
        self.windows, self.quiet = 0, self.quiet * 2
        others = [share for rank, share in shares.items() if rank != slowest]
        who = _name(slowest, self.latest[slowest]) if others else "training"
        beside = f"; the others {100 * median(others):.0f} %" if others else ""
        log.warning("%s spent %.0f %% of its time waiting for data%s", who, 100 * shares[slowest], beside)


class Stall:
    """What rank 0 makes of the reports: whether nobody gets on, and why."""

    def __init__(self, stalled_seconds: float, world_size: int):
        self.stalled_seconds, self.world_size = stalled_seconds, world_size
        self.steps: dict[int, int] = {}
        self.heard: dict[int, tuple[int, float]] = {}  # number and time of each rank's last new report
        self.moved: float | None = None
        self.pause = stalled_seconds

    def look(self, reports: dict[int, Report], now: float) -> None:
        """Warns when it is time to; `now` is this process's clock."""
        for rank, report in reports.items():
            if rank not in self.heard or self.heard[rank][0] != report.number:
                self.heard[rank] = report.number, now
        steps = {rank: report.step for rank, report in reports.items()}
        if self.moved is None or steps != self.steps:
            if self.pause > self.stalled_seconds:
                log.warning("training goes on, at step %d, after %.0f s", max(steps.values()), now - self.moved)
            self.steps, self.moved, self.pause = steps, now, self.stalled_seconds
        elif now - self.moved >= self.pause:
            self.pause *= 2
            silent = {rank: now - heard for rank, (_, heard) in self.heard.items()}
            text = describe(reports, silent, self.world_size, self.stalled_seconds / 2)
            log.warning("no step for %.0f s: %s", now - self.moved, text)


def describe(reports: dict[int, Report], silent: dict[int, float], world_size: int, patience: float) -> str:
    """Which processes the others wait for.

    First those that never came, fell silent or ended; else those at the lowest step; else, where all are at one step,
    those that are not computing, for the others wait for them in it.

    Args:
        silent: seconds since each rank's last report.
        patience: so many are too many.
    """
    if world_size == 1:
        return _doing(reports[0])
    if missing := [rank for rank in range(world_size) if rank not in reports]:
        return f"{_ranks(missing)} did not come to the training loop"
    if ended := [rank for rank in sorted(reports) if reports[rank].phase == ENDED]:
        return _several([f"{_name(rank, reports[rank])} has ended, at step {reports[rank].step}" for rank in ended])
    if lost := [rank for rank in sorted(reports) if silent[rank] > patience]:
        said = [f"{_name(r, reports[r])} is silent for {silent[r]:.0f} s, after {_doing(reports[r])}" for r in lost]
        return _several(said) + "; such a process is gone, was halted, or is cut off"
    lowest = min(report.step for report in reports.values())
    behind = {rank: report for rank, report in reports.items() if report.step == lowest}
    if len(behind) == world_size:
        behind = {rank: report for rank, report in reports.items() if report.phase != COMPUTING}
    if not behind:
        which = f"all {world_size} processes are computing at step {lowest}, and none is behind"
        return f"{which}: look at the network between them, and at their devices"
    said = [f"{_name(rank, report)}: {_doing(report)}" for rank, report in sorted(behind.items())]
    others = f"; the other {world_size - len(behind)} wait for it" if len(behind) < world_size else ""
    return _several(said) + others


def _doing(report: Report) -> str:
    where = f", at {report.where}" if report.where else ""
    return f"{report.phase} at step {report.step} for {report.since:.0f} s{where}"


def _name(rank: int, report: Report) -> str:
    return f"rank {rank} ({report.host})"


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))


def _several(said: list[str], most: int = 4) -> str:
    return "; ".join(said[:most]) + (f"; and {len(said) - most} more" if len(said) > most else "")


def _difference(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {phase: seconds - before.get(phase, 0.0) for phase, seconds in now.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
