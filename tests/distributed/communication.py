"""Communication of two processes, the second of which ends early. communication.py FOLDER"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from redi.runtime.distributed import LostProcess, Vote, process_group
from redi.training.parallel.fsdp import FSDP

with process_group(torch.device("cpu")) as processes:
    rank = processes.rank
    assert (processes.size, processes.is_first) == (2, rank == 0)
    assert processes.rows(6).of(torch.arange(6)).tolist() == [[0, 1, 2], [3, 4, 5]][rank]

    means = processes.mean({"a": torch.tensor(1.0 + rank), "b": 10.0 * rank})
    assert {name: float(value) for name, value in means.items()} == {"a": 1.5, "b": 5.0}
    means = processes.mean({"bins": torch.tensor([[1.0, 2.0, 3.0]]) + rank, "a": 2.0 * rank})
    assert means["bins"].tolist() == [[1.5, 2.5, 3.5]] and float(means["a"]) == 1.0
    assert processes.gathered(f"rank {rank}") == ["rank 0", "rank 1"]

    read = {"half": torch.arange(6).bfloat16().view(2, 3), "step": torch.tensor(3), "flag": torch.tensor([True])}
    layout = {name: tensor.to("meta") for name, tensor in read.items()}
    sent = dict(processes.from_first(read if rank == 0 else layout))
    assert all(torch.equal(sent[name], tensor) for name, tensor in read.items())

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

    folder = Path(sys.argv[1]) / "parts"
    whole = torch.arange(6.0)
    divided = {"model": {"weight": distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])}}
    processes.on_first(lambda: (folder.mkdir(), (folder / "model").write_text("no folder")) and None)
    try:
        FSDP().write(divided, folder, processes)
    except OSError as error:
        assert "parts/model not written: on rank" in str(error) and not isinstance(error, LostProcess)
    else:
        raise AssertionError("FSDP's parts were written into a file")
    processes.gathered(None)  # rank 0 has removed the rest
    assert not folder.exists()
    processes.gathered(None)  # rank 0 makes it again
    written = FSDP().write(divided, folder, processes)
    assert torch.equal(load_file(written["model"])["weight"], whole)

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
