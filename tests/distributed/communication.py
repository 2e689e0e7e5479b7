"""What two processes tell each other; the second one ends early."""

import os

import torch

from redi.core.distributed import LostProcess, Vote, process_group

with process_group(torch.device("cpu")) as processes:
    rank = processes.rank
    assert (processes.size, processes.is_first) == (2, rank == 0)
    assert processes.rows(6).of(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]][rank]

    means = processes.mean({"a": torch.tensor(1.0 + rank), "b": 10.0 * rank})
    assert {name: float(value) for name, value in means.items()} == {"a": 1.5, "b": 5.0}
    assert processes.gathered(f"rank {rank}") == ["rank 0", "rank 1"]

    asked = []
    assert processes.on_first(lambda: asked.append(rank) or "from the first") == "from the first"
    assert asked == [0] * (rank == 0)

    def fail():
        raise OSError("the disk is full")

    try:
        processes.on_first(fail)
    except OSError as error:
        assert str(error) == ("the disk is full" if rank == 0 else "rank 0: the disk is full")
    else:
        raise AssertionError("rank 0 failed, and nobody was told")

    vote = Vote(processes)
    assert [vote.cast(number) for number in ((0, 0, 15, 0), (0, 10, 0, 0))[rank]] == [0, 0, 10, 15]
    assert vote.result() == 0

    processes.gathered(None)
    if rank == 1:
        os._exit(0)
    try:
        processes.mean({"a": 0.0})
    except LostProcess as error:
        print(f"told: {error}", flush=True)
