"""Starts real trainings and does to them what happens to long runs; all that it knows it sees from outside.

A fault is applied between the start of a process and its end. Afterwards every checkpoint is read and verified, every
line of the log is parsed, and the work lost is counted: the steps whose lines were in the log, less those of the newest
checkpoint (training keeps its last line back for one step, so that one more may be lost).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from redi.runtime.checkpoint import list_checkpoints, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.0005
PATIENCE_SECONDS = 600.0


@dataclass
class Outcome:
    """What one fault did.

    Attributes:
        fault: its name.
        status: the exit status of the program, negative for the signal that killed it.
        steps_lost: see above.
        checkpoints: how many were read and found good.
        damage: what was found broken, in words.
    """

    fault: str
    status: int
    steps_lost: int
    checkpoints: int
    damage: list[str]


class Training:
    """A training in a folder of its own, started as often as it takes.

    Args:
        folder: for the run and what the programs say.
        gin_text: its configuration; plug-ins of this folder can be imported.
        python: the fixture of this name, in which `finish` runs the program.
        launcher: what comes before `-m redi.train`, after the interpreter.
    """

    def __init__(self, folder: Path, gin_text: str, python: Callable, launcher: tuple[str, ...] = ()):
        self.folder, self.run_dir, self.stderr = folder, folder / "run", folder / "stderr.txt"
        self.python, self.launcher = python, launcher
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chaos.gin").write_text(gin_text)

    def command(self, program: str) -> tuple[list[str], dict[str, str]]:
        """Arguments of the interpreter, and the environment."""
        flags = f"--gin_file={self.folder / 'chaos.gin'}", f"--run_dir={self.run_dir}"
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return [*self.launcher, "-m", f"redi.{program}", *flags], environment

    def start(self, program: str = "train") -> subprocess.Popen:
        """A process in a session of its own, so that what it leaves behind can be found."""
        arguments, environment = self.command(program)
        with open(self.stderr, "a") as said:
            return subprocess.Popen(
                [sys.executable, *arguments], env=environment, cwd=self.folder,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip

    def ended(self, process: subprocess.Popen) -> int:
        """Its exit status, once it has ended by itself. Raises TimeoutExpired, and kills it, after ten minutes."""
        try:
            return process.wait(PATIENCE_SECONDS)
        except BaseException:  # also a Ctrl-C of these tests, which the session of its own does not see
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def finish(self, program: str = "train") -> int:
        """Runs it without a fault -> exit status."""
        arguments, environment = self.command(program)
        done = self.python(*arguments, cwd=self.folder, env=environment)
        with open(self.stderr, "a") as said:
            said.write(done.stderr)
        return done.returncode

    def said(self) -> str:
        """What all starts so far wrote to stderr."""
        return self.stderr.read_text() if self.stderr.exists() else ""

    def lines(self) -> list[dict]:
        """The entries of the log. Raises ValueError for half a line, and for NaN, which is no JSON."""
        path = self.run_dir / "log.jsonl"
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            raise ValueError(f"the log ends in half a line: {text.splitlines()[-1]!r}")
        return [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]

    def logged_step(self) -> int:
        """That of the last whole line of a log that is being written; 0 without one."""
        try:
            with open(self.run_dir / "log.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                whole = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
            return int(json.loads(whole)["step"])
        except (OSError, ValueError):
            return 0

    def saved_step(self) -> int:
        """That of the newest checkpoint; 0 without one."""
        checkpoints = list_checkpoints(self.run_dir)
        return int(checkpoints[-1].name.removeprefix("step_")) if checkpoints else 0

    def writes_checkpoint(self) -> bool:
        """Whether a folder that will become a checkpoint lies there."""
        return any(self.run_dir.glob("checkpoints/.step_*"))

    def suffer(self, fault: Callable[["Training", subprocess.Popen], str]) -> Outcome:
        """Starts it, applies the fault, waits for the end of the process and looks at what it left."""
        process = self.start()
        try:
            name = fault(self, process)
            status = self.ended(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        damage, good = list(_left_alive(process.pid)), 0
        for folder in list_checkpoints(self.run_dir):
            try:
                load_checkpoint(folder)
                good += 1
            except ValueError as error:
                damage.append(str(error))
        try:
            logged = self.lines()
        except ValueError as error:
            damage.append(str(error))
            logged = []
        last = logged[-1]["step"] if logged else 0
        return Outcome(name, status, max(0, last - self.saved_step()), good, damage)

    def wait(self, process: subprocess.Popen, condition: Callable[[], bool]) -> None:
        """Until the condition holds. Raises AssertionError where the process ends before."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert process.poll() is None, f"ended with {process.returncode} before the fault:\n{self.said()[-2000:]}"
            assert time.monotonic() < give_up, f"waited ten minutes in vain:\n{self.said()[-2000:]}"
            time.sleep(POLL_SECONDS)

    def reaches(self, step: int) -> Callable[[], bool]:
        """A condition: the process about to be started has written the log's line of `step`."""
        path = self.run_dir / "log.jsonl"

        def written() -> int:
            return path.stat().st_mtime_ns if path.exists() else 0

        before = written()  # lines of the start before may lie beyond the checkpoint
        return lambda: written() != before and self.logged_step() >= step


def kill_while_starting(generator: random.Random) -> Callable:
    """SIGKILL within the first seconds, in which modules are imported, data audited and the checkpoint read."""

    def fault(training: Training, process: subprocess.Popen) -> str:
        time.sleep(generator.uniform(0.0, 4.0))
        process.kill()
        return "SIGKILL while starting"

    return fault


def kill_at_step(step: int, generator: random.Random) -> Callable:
    """SIGKILL soon after a line of the log."""

    def fault(training: Training, process: subprocess.Popen) -> str:
        training.wait(process, training.reaches(step))
        time.sleep(generator.uniform(0.0, 0.01))
        process.kill()
        process.wait()
        return "SIGKILL during a checkpoint" if training.writes_checkpoint() else "SIGKILL between checkpoints"

    return fault


def kill_in_checkpoint(step: int, generator: random.Random) -> Callable:
    """SIGKILL while the next checkpoint after `step` is being written, as far as it can be hit from outside."""

    def fault(training: Training, process: subprocess.Popen) -> str:
        training.wait(process, training.reaches(step))
        training.wait(process, training.writes_checkpoint)
        time.sleep(generator.uniform(0.0, 0.003))
        process.kill()
        process.wait()
        return "SIGKILL during a checkpoint" if training.writes_checkpoint() else "SIGKILL between checkpoints"

    return fault


def send(number: signal.Signals, step: int) -> Callable:
    """A signal that asks to stop, after a line of the log."""

    def fault(training: Training, process: subprocess.Popen) -> str:
        training.wait(process, training.reaches(step))
        process.send_signal(number)
        return number.name

    return fault


def compared(training: Training, unbroken: Training) -> list[str]:
    """Differences of two finished trainings, in words: tensors of the last checkpoint, losses of every step."""
    import torch

    (found, record), (expected, expected_record) = (
        load_checkpoint(list_checkpoints(run.run_dir)[-1]) for run in (training, unbroken)
    )
    differences = [] if record["step"] == expected_record["step"] else ["the last step"]
    if {name: set(group) for name, group in found.items()} != {name: set(group) for name, group in expected.items()}:
        return [*differences, f"groups or names of tensors: {sorted(found)}, {sorted(expected)}"]
    differences += [
        f"{group} {name}"
        for group, tensors in expected.items()
        for name, tensor in tensors.items()
        if not torch.equal(tensor, found[group][name])
    ]
    if _losses(training.lines()) != _losses(unbroken.lines()):
        differences.append("the losses of the log")
    return differences


def _refuse(constant: str) -> float:
    raise ValueError(f"the log holds {constant}, which is no JSON")


def _losses(lines: list[Mapping]) -> list[tuple]:
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]


def _left_alive(session: int) -> Iterator[str]:
    """Processes of a session whose leader has ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            yield f"process {path.parent.name} outlived the program that had started it"
