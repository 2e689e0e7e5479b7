"""Work divided over processes: each part once, dead and silent holders, and real processes with one result."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from redi.runtime import shared_work
from redi.runtime.distributed import process_rank
from redi.runtime.shared_work import complete


class Job:
    """Parts that write a file each, and a finish that joins them; counts what was done."""

    def __init__(self, folder, parts):
        self.folder, self.parts, self.did = folder, parts, []
        self.result = folder / "result"

    def do(self, part):
        self.did.append(part)
        (self.folder / part).write_text(part)

    def finish(self):
        self.did.append("finish")
        self.result.write_text("".join((self.folder / part).read_text() for part in self.parts))

    def run(self, **options):
        actions = {"is_done": lambda part: (self.folder / part).exists(), "do": self.do, "finish": self.finish}
        complete(self.folder / "work", self.parts, finished=self.result.exists, **actions | options)
        return self.did


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path, ["a", "b", "c", "d", "e"])


def lease(job, part, host="elsewhere", pid=1, namespace=None):
    """A lease as another process leaves it; by default one of another machine."""
    namespace = shared_work._pid_namespace() if namespace is None else namespace
    path = job.folder / "work" / f"{part}.holder" / f"t@{pid}@{namespace}@{host}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_one_process_does_every_part_once_in_order(job):
    assert job.run() == ["a", "b", "c", "d", "e", "finish"]
    assert job.result.read_text() == "abcde"


def test_nothing_but_the_result_is_left(job):
    job.run()
    assert not (job.folder / "work").exists()


def test_a_rank_does_its_own_share_first_and_then_what_nobody_does(job):
    assert job.run(rank=1, world_size=3) == ["b", "e", "a", "c", "d", "finish"]


def test_what_is_done_is_not_done_again(job):
    (job.folder / "c").write_text("c")
    assert job.run() == ["a", "b", "d", "e", "finish"]


def test_what_is_finished_is_left_alone(job):
    job.result.write_text("before")
    assert job.run() == []


def test_a_finish_that_finds_damage_has_the_part_done_again(job):
    def finish():
        if job.did.count("b") == 1:
            (job.folder / "b").unlink()
        else:
            job.finish()

    assert job.run(finish=finish) == ["a", "b", "c", "d", "e", "b", "finish"]


def test_an_error_gives_the_part_back(job):
    with pytest.raises(ZeroDivisionError):
        job.run(do=lambda part: 1 / 0)
    assert list((job.folder / "work").iterdir()) == []
    job.run()
    assert job.result.read_text() == "abcde"


@pytest.fixture
def dead_pid():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    return dead.pid


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in sleeps alone, and what is to happen at each of them."""
    clock = type("Clock", (), {"now": 0.0, "at_each_sleep": [], "monotonic": lambda self: self.now})()

    def sleep(seconds):
        clock.now += seconds
        for happen in clock.at_each_sleep:
            happen()

    clock.sleep = sleep
    monkeypatch.setattr(shared_work, "time", clock)
    return clock


def test_a_part_of_a_dead_process_on_this_machine_is_taken_over_at_once(job, clock, dead_pid):
    lease(job, "b", host=socket.gethostname(), pid=dead_pid)
    assert job.run() == ["a", "b", "c", "d", "e", "finish"]
    assert clock.now == 0


def test_a_process_of_another_container_with_the_same_host_name_is_not_taken_for_dead(job, clock, dead_pid):
    lease(job, "b", host=socket.gethostname(), pid=dead_pid, namespace="pid:[1]")
    assert job.run() == ["a", "c", "d", "e", "b", "finish"]
    assert clock.now > shared_work.LOST_SECONDS


def test_a_part_that_falls_silent_elsewhere_is_taken_over_after_a_while(job, clock):
    lease(job, "b")
    assert job.run() == ["a", "c", "d", "e", "b", "finish"]
    assert shared_work.LOST_SECONDS < clock.now <= shared_work.LOST_SECONDS + 2 * shared_work.POLL_SECONDS


def test_a_part_of_a_living_holder_is_waited_for(job, clock):
    path, beats = lease(job, "b"), iter(range(100))

    def elsewhere():
        if (beat := next(beats)) < 90:
            os.utime(path, ns=(beat, beat))
        elif beat == 90:
            (job.folder / "b").write_text("B")
            path.unlink()

    clock.at_each_sleep.append(elsewhere)
    assert job.run() == ["a", "c", "d", "e", "finish"]
    assert job.result.read_text() == "aBcde"
    assert clock.now > 2 * shared_work.LOST_SECONDS


def test_a_holder_shows_that_it_lives(job, monkeypatch):
    monkeypatch.setattr(shared_work, "HEARTBEAT_SECONDS", 0.02)
    times = set()

    def do(part):
        for _ in range(10):
            (path,) = (job.folder / "work" / f"{part}.holder").iterdir()
            times.add(path.stat().st_mtime_ns)
            time.sleep(0.02)
        job.do(part)

    job.parts = ["a"]
    job.run(do=do)
    assert len(times) > 2


def test_a_damaged_lease_counts_as_silent_and_not_as_dead(job, clock):
    path = lease(job, "b")
    path.rename(path.with_name("t"))
    assert job.run()[-2:] == ["b", "finish"]
    assert clock.now > shared_work.LOST_SECONDS


def test_a_holder_killed_between_freeing_a_part_and_clearing_up_blocks_nobody(job, clock):
    lease(job, "b").unlink()
    assert job.run() == ["a", "b", "c", "d", "e", "finish"]
    assert clock.now == 0


def test_a_waiting_process_says_whom_it_waits_for(job, clock, caplog):
    lease(job, "b")
    with caplog.at_level("INFO", logger="redi"):
        job.run()
    assert "waiting for other processes: b is done by process 1 on elsewhere" in caplog.text
    assert "taking over b, which process 1 on elsewhere left unfinished" in caplog.text


@pytest.fixture
def overtaken(tmp_path, monkeypatch):
    """Three that want the part "b": one holds it and sleeps; both others judge it dead, `slow` after `fast` took over.

    Gives the sleeper's and the fast one's hold, to be ended, and whether the slow one got the part.
    """
    asleep, fast, slow = (shared_work._Leases(tmp_path) for _ in range(3))
    holds = [contextlib.ExitStack() for _ in range(3)]

    def abandoned(leases, *_):
        if leases is slow:
            assert holds[1].enter_context(fast.take("b"))
        return True

    with monkeypatch.context() as patch:
        assert holds[0].enter_context(asleep.take("b"))
        patch.setattr(shared_work._Leases, "_abandoned", abandoned)
        got = holds[2].enter_context(slow.take("b"))
    with holds[2], holds[1], holds[0]:
        yield holds[0], holds[1], got


def is_free(folder):
    with shared_work._Leases(folder).take("b") as held:
        return held


def test_of_two_that_judge_a_lease_abandoned_one_takes_it_over(overtaken, tmp_path):
    _, _, slow_got_it = overtaken
    assert not slow_got_it
    assert not is_free(tmp_path)


def test_a_sleeper_that_wakes_up_does_not_give_back_the_lease_of_its_successor(overtaken, tmp_path):
    sleeper, successor, _ = overtaken
    sleeper.close()
    assert not is_free(tmp_path)
    successor.close()
    assert is_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["do", "finish"])
def test_what_a_sleeper_stumbles_over_after_the_others_have_finished_is_no_error(job, stage):
    def stumble(*part):
        job.result.write_text("by others")
        (job.folder / "work" / "gone" / "x").touch()

    job.run(**{stage: stumble})
    assert job.result.read_text() == "by others"


@pytest.mark.parametrize("stage", ["do", "finish"])
def test_an_error_of_the_file_system_is_raised_while_nothing_is_finished(job, stage):
    with pytest.raises(FileNotFoundError, match="gone"):
        job.run(**{stage: lambda *part: (job.folder / "work" / "gone" / "x").touch()})


def test_a_lease_that_cannot_be_written_is_an_error_and_not_waited_for(job, monkeypatch):
    monkeypatch.setattr(shared_work, "_own_name", lambda: "x" * 300)
    with pytest.raises(OSError, match="too long"):
        job.run()


@pytest.fixture
def bare_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, (), (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (), (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}, (), (3, 8)),
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (), (2, 4)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (1, 3), (1, 3)),
        ({"RANK": "2"}, (), (0, 1)),
    ],
)
def test_the_rank_is_as_given_or_else_the_environments(bare_environment, environment, given, expected):
    for name, value in environment.items():
        bare_environment.setenv(name, value)
    assert process_rank(*given) == expected


@pytest.mark.parametrize("given", [(3, 3), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(given):
    with pytest.raises(ValueError, match=r"rank, world_size = .* lies outside \[0, "):
        process_rank(*given)


def test_half_a_rank_is_refused():
    with pytest.raises(ValueError, match="give both, or neither"):
        process_rank(rank=1)


def test_an_environment_that_is_no_number_is_refused(bare_environment):
    bare_environment.setenv("RANK", "first")
    bare_environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE = first, 2: whole numbers"):
        process_rank()


# For each scenario (world size, ranks to start, the rank that is killed in its second batch): its exit codes.
SCENARIOS = {"alone": (1, 1, None), "two": (2, 2, None), "killed": (2, 2, 1)}
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch._dynamo  # as torch.optim does at first use: once here instead of in every process
from redi.models.codec import JointCodec, Representation
from redi.runtime import shared_work
from redi.data.cache import fits
from redi.data.datasets.digits import Digits
from redi.data.cache.prepare import prepare
from redi.models.autoencoders.pixels import Pixels
from redi.models.encoders.domain import DomainEncoder
from redi.models.reducers.pca import PCA

fits.BLOCK = 10
shared_work.POLL_SECONDS = 0.1
dataset = Digits().without(range(60, 1438))

def work(folder, rank, world_size, killed):
    encoder = DomainEncoder(width=8, depth=1, image_size=8, num_steps=5, batch_size=16)
    representation = Representation(encoder=encoder, reducer=PCA(rank=3))
    codec = JointCodec(autoencoder=Pixels(channels=1), representations=[representation])
    fit, precompute, calls = encoder.fit, codec.precompute, []
    def noted_fit(dataset):
        with open(folder.with_suffix(".fits"), "a") as file:
            file.write(f"{rank}\\n")
        fit(dataset)
    def noted_precompute(images):
        calls.append(rank)
        if rank == killed and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return precompute(images)
    encoder.fit, codec.precompute = noted_fit, noted_precompute
    cache = prepare(
        codec=codec, dataset=dataset, cache_dir=folder, num_fit_images=45, batch_size=4, rows_per_shard=8, mirror=True,
        rank=rank, world_size=world_size,
    )
    assert len(cache) == 60 and codec.fitted and len(calls) > 0
    cache.check(codec)

codes = {}
for name, (world_size, ranks, killed) in json.loads(sys.argv[2]).items():
    rank_of = {}
    for rank in range(ranks):
        if not (process := os.fork()):
            work(Path(sys.argv[1]) / name, rank, world_size, killed)
            os._exit(0)
        rank_of[process] = rank
    ended = dict(os.wait() for _ in range(ranks))
    codes[name] = [os.waitstatus_to_exitcode(ended[process]) for process in rank_of]
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The folder in which every scenario has left its files, and the exit codes of its processes."""
    folder = tmp_path_factory.mktemp("outcome")
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(SCENARIOS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("scenario", "codes"), [("two", [0, 0]), ("killed", [0, -9])], ids=["two", "killed"])
def test_several_processes_leave_the_files_of_one_bit_for_bit(outcome, scenario, codes):
    folder, ended = outcome
    assert ended["alone"] == [0]
    assert ended[scenario] == codes
    alone = contents(folder / "alone")
    # Shards, fits, and what the codec learned.
    assert len([name for name in alone if name.endswith(".safetensors")]) == 8 + 2 + 1
    assert contents(folder / scenario) == alone


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_encoder_is_trained_by_one_process(outcome, scenario):
    folder, _ = outcome
    assert len((folder / f"{scenario}.fits").read_text().split()) == 1
