"""The processes of a distributed run: ranks, collective operations and the process group."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from redi.runtime.interrupt import Stopped
from redi.runtime.randomness import Rows

Result = TypeVar("Result")
# How long a process waits for the others; meanwhile rank 0 may write a checkpoint, draw previews or run the monitor.
TIMEOUT = timedelta(minutes=60)
# Set by torchrun and srun. The batch script of a Slurm job itself has no SLURM_STEP_NUM_TASKS.
ENVIRONMENTS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))
# Recognizes network errors of gloo and NCCL, which are plain RuntimeErrors.
NETWORK = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket|TCPStore", re.IGNORECASE)


class LostProcess(OSError):
    """Another process of this run ended, stopped responding, or became unreachable."""


def process_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return rank and world size: the arguments, else those of torchrun or srun, else 0 and 1. Raises ValueError."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank = {rank} and world_size = {world_size}: pass both or neither")
    source = "rank, world_size"
    if rank is None or world_size is None:
        rank, world_size = 0, 1
        for names in ENVIRONMENTS:
            values = [os.environ.get(name, "") for name in names]
            if all(values):
                source = ", ".join(names)
                try:
                    rank, world_size = map(int, values)
                except ValueError:
                    what = f"the environment variables {source} = {', '.join(values)}"
                    raise ValueError(f"{what} must be integers") from None
                break
    if not 0 <= rank < world_size:
        raise ValueError(f"{source} = {rank}, {world_size}: the rank must be in [0, {world_size})")
    return rank, world_size


class Processes:
    """The processes that train one model together; by default only this process, without communication.

    All processes call the collective methods (`mean`, `on_first`, ...) in the same order. These raise LostProcess.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None):
        self.rank, self.size, self.store = rank, size, store

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0."""
        return self.rank == 0

    def rows(self, batch_size: int) -> Rows:
        """Return the rows of a batch that this process computes."""
        count = batch_size // self.size
        return Rows(self.rank * count, count, batch_size)

    def check(self, batch_size: int, accumulate: int) -> None:
        """Raise ValueError if the batch cannot be split into equal parts."""
        if batch_size % (self.size * accumulate):
            times = f" x train.accumulate = {accumulate}" if accumulate > 1 else ""
            raise ValueError(
                f"train.batch_size = {batch_size} (the batch over all processes) is not divisible by {self.size} "
                f"processes{times}: start another number of processes, or change train.accumulate"
            )

    def mean(self, values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
        """Average named numbers or tensors over the processes, which pass the same names. Keeps the device."""
        if self.size == 1 or not values:
            return dict(values)
        tensors = [torch.as_tensor(value, dtype=torch.float32) for value in values.values()]
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), torch.device("cpu"))
        joined = torch.cat([tensor.to(device).flatten() for tensor in tensors])
        with as_lost_process():
            dist.all_reduce(joined)
        parts = (joined / self.size).split([tensor.numel() for tensor in tensors])
        return {name: part.view(tensor.shape) for name, part, tensor in zip(values, parts, tensors, strict=True)}

    def on_first(self, do: Callable[[], Result]) -> Result:
        """Call `do` on rank 0 and return its result on all ranks; a ValueError or OSError is raised on all ranks."""
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
        """Send tensors from rank 0 one at a time and yield (name, CPU tensor); other ranks may pass meta tensors."""
        for name, tensor in tensors.items():
            if self.size > 1:
                tensor = tensor.contiguous() if self.is_first else torch.empty_like(tensor, device="cpu")
                with as_lost_process():
                    dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)  # gloo does not support all dtypes
            yield name, tensor

    def gathered(self, value: Result) -> list[Result]:
        """Return the values of all processes in rank order; for small objects, which are pickled."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        with as_lost_process():
            dist.all_gather_object(values, value)
        return values


class Vote:
    """The maximum of an integer over processes, one step late so that no process waits; at once for a single one."""

    pending: tuple[Any, Tensor] | None

    def __init__(self, processes: Processes):
        self.processes, self.pending = processes, None

    def cast(self, number: int) -> int:
        """Submit an integer of at least 0; return the maximum over processes of the previous call (0 at first)."""
        if self.processes.size == 1:
            return number
        last = self.result()
        ballot = torch.tensor([number], dtype=torch.int32)
        with as_lost_process():
            self.pending = dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True), ballot
        return last

    def result(self) -> int:
        """Wait for the maximum of the integers passed to the last `cast`; 0 if it was already returned."""
        if self.pending is None:
            return 0
        (work, ballot), self.pending = self.pending, None
        with as_lost_process():
            work.wait()
        return int(ballot)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Join the processes started by torchrun or srun, or use the existing process group; a single process has none.

    Raises ValueError if MASTER_ADDR or MASTER_PORT is missing, and LostProcess if other processes do not connect.
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
            f"rank {rank} of {size} cannot connect to the others: the environment lacks {', '.join(missing)}. Start "
            "the processes with torchrun, or set both variables as experiments/slurm/train.sbatch does (docs/launch.md)"
        )
    with as_lost_process():
        store, _, _ = next(dist.rendezvous(f"env://?rank={rank}&world_size={size}", timeout=TIMEOUT))
        # torchrun's store survives a restart and still holds the addresses of the previous processes.
        store = dist.PrefixStore(f"redi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{size}", store)
        store = dist.PrefixStore(str(store.add(f"joined/{rank}", 1)), store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
    all_end = False
    try:
        yield Processes(rank, size, dist.PrefixStore("watchdog", store))
        all_end = True
    except Stopped:  # all processes agreed to stop
        all_end = True
        raise
    finally:
        time.sleep(0.5)  # gloo's threads may need the GIL for the last tensors; the group's destructor would hold it
        # If only this process failed, destroying the NCCL group would wait for the others forever
        # (pytorch/torchtitan#1342). They notice when this process ends.
        if all_end or device.type != "cuda":
            dist.destroy_process_group()


@contextlib.contextmanager
def as_lost_process(*, network_only: bool = False) -> Iterator[None]:
    """Context that turns a RuntimeError into LostProcess with advice; with `network_only`, only network errors."""
    try:
        yield
    except RuntimeError as error:
        if network_only and not (isinstance(error, dist.DistError) or NETWORK.search(str(error))):
            raise
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LostProcess(
            f"another process of this run ended or is unreachable ({cause}). Rerun the same command to resume from the "
            "last checkpoint, or let torchrun --max-restarts=N restart the processes automatically"
        ) from error
