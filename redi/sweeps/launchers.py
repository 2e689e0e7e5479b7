"""Run the points of a sweep in processes of this machine, or print their commands for a scheduler."""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from redi.pages.sweep_results import read_result
from redi.pages.wording import is_number
from redi.runtime import trusted_imports
from redi.runtime.interrupt import StopRequest
from redi.runtime.progress import duration
from redi.sweeps.owner import works_elsewhere
from redi.sweeps.plan import PlannedPoint

log = logging.getLogger("redi")

POLL_SECONDS = 0.2


def command(run_dir: Path, entry: PlannedPoint, *, processes: int | None = None) -> list[str]:
    """Return the command that runs one point; with `processes`, under torchrun."""
    launcher = [sys.executable]
    if processes is not None:
        # --standalone picks a free port, because several points run at once. Without --signals-to-handle, a scheduler's
        # warning (SIGUSR1, SIGUSR2) kills torchrun and orphans its processes.
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"]
    plugins = [f"--plugin={name}" for name in sorted(trusted_imports.trusted)]
    return [*launcher, "-m", "redi.sweep", f"--run_dir={run_dir}", f"--point={entry.name}", *plugins]


def print_commands(commands: Sequence[list[str]], threads: int | None) -> None:
    """Print the commands for another scheduler, one per line."""
    for words in commands:
        print((f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words), flush=True)


def local(
    run_dir: Path, entries: Sequence[PlannedPoint], *, parallel: int, threads: int | None, processes: int | None = None
) -> None:
    """Run the points as processes on this machine, `parallel` at once. Each writes its output to `output.txt`.

    Raises KeyboardInterrupt: a signal of `StopRequest` arrived. All processes have saved their work and stopped.
    """
    waiting, running, elsewhere = list(entries), dict[str, tuple[PlannedPoint, subprocess.Popen]](), set[Path]()
    try:
        with StopRequest("running points save their work and stop") as stop:
            while (waiting or running) and stop.requested is None:
                while len(running) < parallel and (entry := _next(run_dir, waiting, running, elsewhere)):
                    waiting.remove(entry)
                    if entry.folder(run_dir) in elsewhere and read_result(entry.folder(run_dir)):
                        log.info("%s: finished by another process", entry.name)
                        continue
                    words = command(run_dir, entry, processes=processes)
                    running[entry.name] = entry, start(run_dir, entry, words, threads)
                    log.info("%s: started, %d waiting", entry.name, len(waiting))
                for entry, status in _ended(running):
                    note_end(run_dir, entry, status)
                    unfinished = [*waiting, *(entry for entry, _ in running.values())]
                    if seconds := seconds_left(run_dir, unfinished, parallel):
                        numbers = len(unfinished), len(entries), duration(seconds)
                        log.info("%d of %d points remaining, about %s", *numbers)
                time.sleep(POLL_SECONDS)
            for _, process in running.values():
                assert stop.requested is not None  # else the loop above ends with nothing running
                process.send_signal(stop.requested)
            while running:  # a second Ctrl-C ends this wait
                _ended(running)
                time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.kill()
    stop.interrupt("the sweep was stopped; finished points are kept")


def start(run_dir: Path, entry: PlannedPoint, words: Sequence[str], threads: int | None) -> subprocess.Popen:
    """Start the process of a point in its own session, which the terminal's Ctrl-C does not reach; `local` stops it."""
    folder = entry.folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    entry.forget_outcome(run_dir)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def note_end(run_dir: Path, entry: PlannedPoint, status: object) -> None:
    """Log how a point's process ended. Write `error.txt` if it was killed before it could write one."""
    folder = entry.folder(run_dir)
    if read_result(folder) is not None:
        log.info("%s: done", entry.name)
        return
    error = folder / "error.txt"
    if not error.exists():
        error.write_text(f"the process ended with status {status} and wrote no result; see output.txt\n")
    log.error("%s: %s", entry.name, error.read_text().partition("\n\n")[0].strip())


def seconds_left(run_dir: Path, unfinished: Sequence[PlannedPoint], parallel: int) -> float:
    """Estimate the remaining seconds from finished points (each model is trained once); 0 if none is finished."""
    results = [result for path in (run_dir / "points").iterdir() if (result := read_result(path))]
    seconds = [{k: s for k, s in result.get("seconds", {}).items() if is_number(s)} for result in results]
    train = [stages.pop("train") for stages in seconds if "train" in stages]
    models = {entry.model for entry in unfinished if not entry.is_trained(run_dir)}
    total = len(models) * np.mean(train or [0]) + len(unfinished) * np.mean([sum(s.values()) for s in seconds] or [0])
    return float(total) / min(parallel, max(len(unfinished), 1))


def _next(run_dir: Path, waiting: Sequence[PlannedPoint], running: Mapping, logged: set[Path]) -> PlannedPoint | None:
    """Return the first waiting point whose model no other point is training and that no other process runs."""
    elsewhere = [entry for entry in waiting if works_elsewhere(entry.folder(run_dir), logged)]
    working = [*elsewhere, *(entry for entry, _ in running.values())]
    training = {entry.model for entry in working if not entry.is_trained(run_dir)}
    return next((entry for entry in waiting if entry not in elsewhere and entry.model not in training), None)


def _ended(running: dict) -> list[tuple[PlannedPoint, int]]:
    """Remove the points whose processes have ended from `running`; return them with exit status."""
    ended = [(entry, process.poll()) for entry, process in running.values() if process.poll() is not None]
    for entry, _ in ended:
        del running[entry.name]
    return ended
