"""Processes of a sweep: how many at once, in which order, stopped, killed; with commands of a moment's work."""

import json
import os
import pickle
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from redi.runtime.checkpoint import checkpoint_dir
from redi.sweeps import launchers, slurm
from redi.sweeps.launchers import command, local, print_commands, seconds_left
from redi.sweeps.owner import working_on
from redi.sweeps.plan import PlannedPoint
from redi.sweeps.slurm import submit
from redi.sweeps.task import Task


def point(name: str, model: str = "") -> PlannedPoint:
    return PlannedPoint(name, name, {}, text="", model=model or name, num_steps=1)


def script(monkeypatch, source: str) -> None:
    """Has points run this Python source in place of redi; NAME is the point's, FOLDER its folder."""

    def words(run_dir: Path, entry: PlannedPoint, *, processes=None) -> list[str]:
        head = f"import os, pathlib, signal, sys, time; NAME = {entry.name!r}"
        return [sys.executable, "-c", f"{head}; FOLDER = pathlib.Path({str(entry.folder(run_dir))!r})\n{source}"]

    monkeypatch.setattr(launchers, "command", words)
    monkeypatch.setattr(slurm, "command", words)


RESULT = """
def done():
    (FOLDER / 'result.json').write_text('{"status": "done", "name": "%s", "metrics": []}' % NAME)
"""
SPAN = f"""{RESULT}
start = time.time()
(FOLDER / 'started').touch()
while NAME in MEETING and time.time() < start + 60 and not all(
    (FOLDER.parent / name / 'started').exists() for name in MEETING
):
    time.sleep(0.02)
(FOLDER / 'span').write_text(f'{{start}} {{time.time()}}')
done()
"""


def meeting(*names: str) -> str:
    """The source of points of which these wait for one another: they end only where they run at once."""
    return f"MEETING = {names!r}\n{SPAN}"


def spans(run_dir: Path, *names: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, (run_dir / "points" / name / "span").read_text().split())) for name in names]


def test_points_run_one_after_the_other_in_order(tmp_path, monkeypatch):
    script(monkeypatch, meeting())
    local(tmp_path, [point("a"), point("b")], parallel=1, threads=None)
    (_, end), (start, _) = spans(tmp_path, "a", "b")
    assert end <= start


def test_points_run_at_once_unless_they_share_a_model_that_is_not_trained(tmp_path, monkeypatch):
    script(monkeypatch, meeting("a", "d"))
    entries = [point("a", "shared"), point("b", "shared"), point("c", "shared"), point("d")]
    local(tmp_path, entries, parallel=2, threads=None)
    a, b, c, d = spans(tmp_path, *"abcd")
    assert d[0] < a[1] and a[1] <= b[0] and b[1] <= c[0]


def test_points_of_a_trained_model_run_at_once(tmp_path, monkeypatch):
    script(monkeypatch, meeting("a", "b"))
    entries = [point("a", "shared"), point("b", "shared")]
    checkpoint_dir(entries[0].trained_dir(tmp_path), 1).mkdir(parents=True)
    local(tmp_path, entries, parallel=2, threads=None)
    a, b = spans(tmp_path, "a", "b")
    assert b[0] < a[1]


def test_a_point_that_another_process_works_on_is_waited_for_and_said(tmp_path, monkeypatch, caplog):
    script(monkeypatch, f"{RESULT}\ndone()")
    entries = [point("a", "shared"), point("b", "shared"), point("c")]
    folder = entries[0].folder(tmp_path)
    folder.mkdir(parents=True)
    begun = threading.Event()
    caplog.set_level("INFO", "redi")

    def work() -> None:
        """As a process of a sweep that was killed: holds the point, and ends with its result."""
        with working_on(folder):
            begun.set()
            while not entries[2].folder(tmp_path).joinpath("result.json").exists():
                time.sleep(0.02)
            (folder / "result.json").write_text('{"status": "done", "name": "a", "metrics": []}')

    threading.Thread(target=work, daemon=True).start()
    assert begun.wait(30)
    local(tmp_path, entries, parallel=1, threads=None)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"a: waiting for process {os.getpid()} on ") and "hangs, end it with kill" in lines[0]
    assert lines[1:3] == ["c: started, 2 waiting", "c: done"]  # b would wait for the training of a
    assert lines[3:] == ["a: finished by another process", "b: started, 0 waiting", "b: done"]
    assert not (folder / "output.txt").exists()


def test_a_point_waits_for_the_process_that_works_on_it(tmp_path):
    order = []

    def second() -> None:
        with working_on(tmp_path) as waited:
            order.append(("second", waited))

    with working_on(tmp_path) as waited:
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        thread.join(0.3)
        order.append(("first", waited))
    thread.join(30)
    assert order == [("first", False), ("second", True)]


def test_the_time_left_counts_the_training_of_each_model_once(tmp_path):
    done, left = [point("a", "m"), point("b", "m")], [point("c", "m"), point("d", "n"), point("e", "n")]
    (tmp_path / "points").mkdir()
    assert seconds_left(tmp_path, left, parallel=1) == 0
    for entry, train in zip(done, (100.0, None), strict=True):
        seconds = {"train": train, "sample": 4.0, "evaluate": 1.0}
        result = {"status": "done", "name": entry.name, "metrics": [], "seconds": seconds}
        entry.folder(tmp_path).mkdir()
        (entry.folder(tmp_path) / "result.json").write_text(json.dumps(result))
    checkpoint_dir(done[0].trained_dir(tmp_path), 1).mkdir(parents=True)
    assert seconds_left(tmp_path, left, parallel=1) == 100 + 3 * 5
    assert seconds_left(tmp_path, left, parallel=2) == (100 + 3 * 5) / 2
    assert seconds_left(tmp_path, left[:1], parallel=4) == 5
    assert seconds_left(tmp_path, [], parallel=4) == 0


def test_what_a_point_prints_is_kept_and_its_threads_are_limited(tmp_path, monkeypatch):
    script(monkeypatch, f"{RESULT}\nprint('threads', os.environ['OMP_NUM_THREADS'])\ndone()")
    local(tmp_path, [point("a")], parallel=1, threads=3)
    assert (tmp_path / "points" / "a" / "output.txt").read_text() == "threads 3\n"


def test_a_point_that_was_killed_has_an_error_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    script(monkeypatch, f"{RESULT}\nif NAME == 'a': os.kill(os.getpid(), signal.SIGKILL)\ndone()")
    (tmp_path / "points" / "a").mkdir(parents=True)
    (tmp_path / "points" / "a" / "error.txt").write_text("of an earlier try")
    local(tmp_path, [point("a"), point("b")], parallel=1, threads=None)
    error = (tmp_path / "points" / "a" / "error.txt").read_text()
    assert error == "the process ended with status -9 and wrote no result; see output.txt\n"
    assert {path.name for path in (tmp_path / "points" / "b").iterdir()} == {"output.txt", "result.json"}
    assert "a: the process ended with status -9" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_sweep_tells_its_processes_once_and_waits_for_them(tmp_path, monkeypatch, number):
    heard = """
def stop(number, frame):
    with open(FOLDER / 'heard', 'a') as file: file.write(f'{number} ')
    time.sleep(0.3)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(FOLDER / 'ready').touch()
time.sleep(60)
"""
    script(monkeypatch, heard)
    ready = [tmp_path / "points" / name / "ready" for name in ("a", "b")]
    over = time.monotonic() + 30

    def stop() -> None:
        while not all(path.exists() for path in ready) and time.monotonic() < over:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="the sweep was stopped; finished points are kept") as stopped:
        local(tmp_path, [point("a"), point("b"), point("c")], parallel=2, threads=None)
    assert stopped.value.signal_number == number
    assert [(path.parent / "heard").read_text() for path in ready] == [f"{int(number)} "] * 2
    assert not (tmp_path / "points" / "c").exists() and not list(tmp_path.rglob("error.txt"))


def test_the_command_of_a_point_can_be_pasted_into_a_shell(capsys):
    words = command(Path("runs/my sweep"), point("rank=8,seed=0"))
    print_commands([words], threads=2)
    line = capsys.readouterr().out.strip()
    expected = "-m redi.sweep '--run_dir=runs/my sweep' --point=rank=8,seed=0"
    assert line == f"OMP_NUM_THREADS=2 {sys.executable} {expected}"


def test_torchrun_starts_so_many_processes_of_the_same_command():
    words = command(Path("runs/s"), point("a"), processes=4)
    assert words[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    assert words[5].startswith("--signals-to-handle=") and {"SIGTERM", "SIGUSR1", "SIGUSR2"} < {
        *re.split("[=,]", words[5])
    }
    assert words[6:] == command(Path("runs/s"), point("a"))[1:]


# ---- Slurm, with submitit's executor for this machine


def test_submitit_runs_every_point_and_failures_are_noted(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    script(monkeypatch, f"{RESULT}\nsys.exit(3) if NAME == 'a' else done()")
    entries = [point("a"), point("b")]
    submit(tmp_path, entries, threads=1, options={"timeout_min": 1}, cluster="local", poll_seconds=0.1)
    assert (tmp_path / "points" / "b" / "result.json").exists()
    assert "wrote no result" in (tmp_path / "points" / "a" / "error.txt").read_text()
    assert not (tmp_path / "points" / "b" / "error.txt").exists()


def test_options_that_submitit_does_not_know_are_refused_before_anything_is_submitted(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="submitit refuses the options in sweep.slurm: (.|\n)*argument 'partitoin'"):
        submit(tmp_path, [point("a")], threads=None, options={"slurm_partitoin": "gpu"}, cluster="local")
    assert not (tmp_path / "points").exists()


WARNED = """
def stop(number, frame):
    time.sleep(0.3)
    (FOLDER / 'saved').write_text(str(number))
    sys.exit(128 + number)
if (FOLDER / 'saved').exists():
    done()
    sys.exit()
signal.signal(signal.SIGUSR2, stop)
(FOLDER / 'job').write_text(str(os.getppid()))
time.sleep(60)
"""


def test_a_job_that_is_warned_has_its_point_save_and_is_queued_again(tmp_path, monkeypatch):
    """submitit's executor for this machine starts a job again as Slurm does; the warning reaches the job alone."""
    pytest.importorskip("submitit")
    script(monkeypatch, RESULT + WARNED)
    folder = point("a").folder(tmp_path)
    over = time.monotonic() + 60

    def warn() -> None:
        while not (folder / "job").exists() and time.monotonic() < over:
            time.sleep(0.02)
        time.sleep(0.1)  # written as well
        os.kill(int((folder / "job").read_text()), signal.SIGUSR2)

    threading.Thread(target=warn, daemon=True).start()
    submit(tmp_path, [point("a")], threads=None, options={"timeout_min": 2}, cluster="local", poll_seconds=0.1)
    assert (folder / "saved").read_text() == str(int(signal.SIGUSR2))
    assert (folder / "result.json").exists() and not (folder / "error.txt").exists()


def test_what_is_queued_again_is_the_same_command_and_pickles():
    pytest.importorskip("submitit")
    task = Task(["sleep", "60"], threads=3, patience_seconds=5)
    threading.Timer(0.3, lambda: again.append(task.checkpoint())).start()
    again = []
    assert task() == -signal.SIGUSR2  # ended by the signal
    over = time.monotonic() + 10
    while not again and time.monotonic() < over:
        time.sleep(0.02)
    copy = pickle.loads(pickle.dumps(again[0].function))
    assert (copy.words, copy.threads, copy.patience_seconds) == (["sleep", "60"], 3, 5)


def test_a_command_that_does_not_stop_in_time_is_queued_again_without_it():
    pytest.importorskip("submitit")
    task = Task(["sh", "-c", "trap '' USR2; sleep 2"], threads=None, patience_seconds=0.3)
    events = []
    threading.Timer(0.5, lambda: events.append(task.checkpoint() and "queued")).start()
    task()
    events.append("the command ended")
    assert events == ["queued", "the command ended"]


def test_a_job_that_is_preempted_before_it_begins_is_queued_again():
    helpers = pytest.importorskip("submitit.helpers")
    again = Task(["true"], threads=None).checkpoint()
    assert isinstance(again, helpers.DelayedSubmission) and again.function.words == ["true"]


@pytest.mark.parametrize(("when", "requeued"), [("2026-11-26T01:05:25", True), ("None", False)])
def test_a_job_that_slurm_preempts_is_queued_again_and_leaves_no_result(tmp_path, monkeypatch, when, requeued):
    """A stand-in for scontrol, with the lines that Slurm 22.05 prints."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n'
        f'echo "   PreemptEligibleTime=2026-11-26T01:04:00 PreemptTime={when}"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    stopped = Task(["sh", "-c", "exit 143"], threads=None)
    if requeued:
        with pytest.raises(SystemExit):
            stopped()
    else:
        assert stopped() == 143
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show job 17"] + ["requeue 17"] * requeued
    assert Task(["true"], threads=None)() == 0
    assert (tmp_path / "asked").read_text().splitlines() == asked  # what is finished is not asked about
