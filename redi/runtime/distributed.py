"""The processes of one training: who they are, and what they tell each other."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from redi.runtime.interrupt import Stopped
from redi.runtime.randomness import Rows

Result = TypeVar("Result")
# How long a process waits for the others before it gives up: rank 0 may write a checkpoint, draw or measure meanwhile.
PATIENCE = timedelta(minutes=60)
# Of torchrun and srun; a batch script's own step has no number of tasks.
ENVIRONMENTS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
# In the messages of gloo and NCCL, whose errors are plain RuntimeErrors.
NETWORK = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket|TCPStore", re.IGNORECASE)


class LostProcess(OSError):
    """Another process of this run ended or fell silent; or the network between them did."""


def process_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """-> rank and world size: the arguments, else those of torchrun or srun, else 0 of 1. Raises ValueError for a rank
    outside [0, world size), or only one of the two.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank = {rank} and world_size = {world_size}: give both, or neither")
    where = "rank, world_size"
    if rank is None:
        rank, world_size = 0, 1
        for names in ENVIRONMENTS:
            values = [os.environ.get(name, "") for name in names]
            if all(values):
                where = ", ".join(names)
                try:
                    rank, world_size = map(int, values)
                except ValueError:
                    raise ValueError(f"the environment has {where} = {', '.join(values)}: whole numbers") from None
                break
    if not 0 <= rank < world_size:
        raise ValueError(f"{where} = {rank}, {world_size}: the rank lies outside [0, {world_size})")
    return rank, world_size


class Processes:
    """The processes that train one model together; by default this one alone, and then nothing is communicated.

    All call `mean`, `on_first`, ... in the same order, which raise LostProcess where another process is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None):
        self.rank, self.size, self.store = rank, size, store

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rows(self, batch_size: int) -> Rows:
        """This process's part of a step's batch."""
        count = batch_size // self.size
        return Rows(self.rank * count, count, batch_size)

    def check(self, batch_size: int, accumulate: int) -> None:
        """Raises ValueError where a batch cannot be cut into equal parts for all."""
        if batch_size % (self.size * accumulate):
            times = f" x train.accumulate = {accumulate}" if accumulate > 1 else ""
            raise ValueError(
                f"train.batch_size = {batch_size}, the batch of all processes together, does not divide by "
                f"{self.size} processes{times}: start another number of processes, or change train.accumulate"
            )

    def mean(self, values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
        """The means over processes of numbers that all have under the same names; on their device."""
        if self.size == 1 or not values:
            return dict(values)
        tensors = [torch.as_tensor(value, dtype=torch.float32) for value in values.values()]
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))
        stacked = torch.stack([tensor.to(device) for tensor in tensors])
        with as_lost_process():
            dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.size, strict=True))

    def on_first(self, do: Callable[[], Result]) -> Result:
        """The result on rank 0, for all. Raises everywhere what rank 0 raises: a ValueError or an OSError."""
        if self.size == 1:
            return do()
        outcome: list = [None, None, ""]  # result, kind of error, message
        failure = None
        if self.is_first:
            try:
                outcome[0] = do()
            except (ValueError, OSError) as error:
                failure = error
                outcome[1:] = [ValueError if isinstance(error, ValueError) else OSError, str(error)]
        with as_lost_process():
            dist.broadcast_object_list(outcome, src=0)
        result, kind, message = outcome
        if kind is not None:
            raise failure or kind(f"rank 0: {message}")
        return result

    def from_first(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors on the CPU, sent by rank 0 one at a time; the others pass tensors without memory (meta)."""
        for name, tensor in tensors.items():
            if self.size > 1:
                tensor = tensor.contiguous() if self.is_first else torch.empty_like(tensor, device="cpu")
                with as_lost_process():
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # gloo does not know all dtypes
            yield name, tensor

    def gathered(self, value: Result) -> list[Result]:
        """The values of all processes, in the order of their ranks; small objects."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        with as_lost_process():
            dist.all_gather_object(values, value)
        return values


class Vote:
    """The largest number that any process casts, known to all one step later, so that none waits for the slowest.

    With one process, at once.
    """

    def __init__(self, processes: Processes):
        self.processes, self.pending = processes, None

    def cast(self, number: int) -> int:
        """A number of at least 0 -> the largest of the call before; 0 at the first."""
        if self.processes.size == 1:
            return number
        last = self.result()
        ballot = torch.tensor([number], dtype=torch.int32)
        with as_lost_process():
            self.pending = dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True), ballot
        return last

    def result(self) -> int:
        """Of the last call of `cast`."""
        if self.pending is None:
            return 0
        (work, ballot), self.pending = self.pending, None
        with as_lost_process():
            work.wait()
        return int(ballot)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun or srun started, or the caller's process group; alone where there is none.

    Raises ValueError where the environment lacks what finds the others, and LostProcess where they do not come.
    """
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    rank, size = process_rank()
    if size == 1:
        yield Processes()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise ValueError(
            f"this is process {rank} of {size}, and the environment lacks {', '.join(missing)}, where they meet: start "
            "them with torchrun, or set both as experiments/slurm/train.sbatch does (docs/launch.md)"
        )
    with as_lost_process():
        store, _, _ = next(dist.rendezvous(f"env://?rank={rank}&world_size={size}", timeout=PATIENCE))
        # torchrun's store outlives a restart, and still has the addresses of those who met in it before.
        store = dist.PrefixStore(f"redi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{size}", store)
        store = dist.PrefixStore(str(store.add(f"joined/{rank}", 1)), store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
    together = False
    try:
        yield Processes(rank, size, dist.PrefixStore("watchdog", store))
        together = True
    except Stopped:  # all have agreed on it
        together = True
        raise
    finally:
        time.sleep(0.5)  # gloo's threads may need the GIL for the last tensors; the group's destructor would hold it
        # Where this process alone has failed, destroying NCCL's group would wait for the others for ever
        # (pytorch/torchtitan#1342). What tells them is that it ends.
        if together or device.type != "cuda":
            dist.destroy_process_group()


@contextlib.contextmanager
def as_lost_process(*, network_only: bool = False) -> Iterator[None]:
    """Turns what torch.distributed raises (`network_only`: and only that) into a LostProcess with advice."""
    try:
        yield
    except RuntimeError as error:
        if network_only and not (isinstance(error, dist.DistError) or NETWORK.search(str(error))):
            raise
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostProcess(
            f"another process of this training is gone, or cannot be reached ({cause}). torchrun --max-restarts=N "
            "starts all again by itself; else the same command goes on from the last checkpoint"
        ) from error
