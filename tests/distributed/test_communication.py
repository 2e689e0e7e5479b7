"""Communication between two real processes, and of one process alone."""

from contextlib import nullcontext

import pytest
import torch

from redi.runtime.distributed import LostProcess, Processes, Vote, as_lost_process, process_group
from redi.runtime.interrupt import Stopped


def test_two_processes_agree_and_learn_of_each_other_s_end(started, tmp_path):
    assert "told: another process of this run ended or is unreachable" in started(2, "communication.py", str(tmp_path))


def test_alone_nothing_is_communicated(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with process_group(torch.device("cpu")) as processes:
        assert not torch.distributed.is_initialized()
        assert processes.mean({"a": 2.0}) == {"a": 2.0}
        assert processes.on_first(lambda: "done") == "done"
        assert processes.gathered(1) == [1]
        assert Vote(processes).cast(15) == 15  # at once


def test_a_place_where_to_meet_is_asked_for(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="rank 1 of 2 .* the environment lacks MASTER_PORT.*torchrun"):
        process_group(torch.device("cpu")).__enter__()


@pytest.mark.parametrize(
    ("kind", "error", "destroyed"),
    [("cuda", None, True), ("cuda", Stopped(15, 1), True), ("cuda", OSError("full"), False), ("cpu", OSError(), True)],
)
def test_nccl_is_taken_down_only_where_all_leave_together(monkeypatch, kind, error, destroyed):
    """By NCCL it would wait for the others, and they for this process. (Without a GPU: what torch is told.)"""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    calls, dist = [], torch.distributed
    monkeypatch.setattr("redi.runtime.distributed.time.sleep", lambda seconds: None)  # for gloo, which is not there
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append(1))
    with pytest.raises(type(error)) if error else nullcontext(), process_group(torch.device(kind, 0)):
        if error:
            raise error
    assert bool(calls) == destroyed


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_rows_of_all_processes_are_the_batch(size):
    batch = torch.arange(12)
    parts = [Processes(rank, size).rows(12).of(batch) for rank in range(size)]
    assert torch.equal(torch.cat(parts), batch)


@pytest.mark.parametrize("size", [2, 4])
def test_random_numbers_of_a_row_do_not_depend_on_the_division(size):
    torch.manual_seed(0)
    expected = torch.randn(8, 3)
    for rank in range(size):
        torch.manual_seed(0)
        rows = Processes(rank, size).rows(8)
        assert torch.equal(rows.randn((8 // size, 3)), rows.of(expected))


def test_errors_of_the_network_are_told_from_others():
    with pytest.raises(LostProcess, match="max-restarts"), as_lost_process(network_only=True):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="^out of memory$"), as_lost_process(network_only=True):
        raise RuntimeError("out of memory")
