"""Where tensors live, in which precision networks run, and whether they are compiled."""

import contextlib
import importlib.util
import math
import os
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from redi.runtime.paths import complete_account

PRECISIONS = ("float32", "tf32", "bfloat16")


class Precision(NamedTuple):
    """How a network computes: `name` as bound; `dtype` of the large products, by autocast where it is bfloat16."""

    name: str
    dtype: torch.dtype

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context for the forward pass on `device`."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def choose_device(device: str) -> torch.device:
    """'auto' is the GPU where there is one, else the CPU. Raises ValueError for what torch does not have here."""
    complete_account()  # all that loads or trains comes here, before a meta device or a compiler asks who the user is
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        what = str(error).strip().splitlines()[0]
        raise ValueError(f"train.device = {device!r} cannot be used here: {what}. 'auto' takes what there is") from None
    return chosen


def own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine, as torchrun or Slurm number them, made the current one.

    Another device is returned as it is.
    """
    if device.type != "cuda":
        return device
    if device.index is None:
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        device = torch.device("cuda", int(local) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that this process can still take on the device, and all that it has.

    Of the host: what is available and swap, within the limit of its control group (a container, a batch job).
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    try:
        sizes = re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        groups = re.findall(r"^\d+:(|memory):/(.*)", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    host = {name: int(size) * 1024 for name, size in sizes}
    limits = [group_memory(Path("/sys/fs/cgroup", controller), path) for controller, path in groups]
    free = min([host["MemAvailable"], *(limit - used for limit, used in limits)]) + host["SwapFree"]
    return int(max(free, 0)), int(min([host["MemTotal"], *(limit for limit, _ in limits)]))


def group_memory(root: Path, path: str) -> tuple[float, float]:
    """The tightest limit of a control group and those above it, and what is in use there; infinity for no limit."""
    tightest = (math.inf, 0.0)
    for folder in (root / path, *(root / path).parents):
        for limit, used, kept in (
            ("memory.max", "memory.current", "inactive_file"),  # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                text = (folder / limit).read_text().strip()
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                group = float(text.replace("max", "inf")), int((folder / used).read_text()) - int(statistics[kept])
            except (OSError, KeyError):
                continue
            tightest = min(tightest, group, key=lambda group: group[0] - group[1])
    return tightest


def device_name(device: torch.device) -> str:
    """'NVIDIA H200', or 'CPU, 2 threads'."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def choose_precision(precision: str, device: torch.device, binding: str = "train.precision") -> Precision:
    """'auto' is bfloat16 on a GPU that has it, else float32. Raises ValueError for another name."""
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"{binding} = {precision!r}: it is 'auto', 'float32', 'tf32' or 'bfloat16'")
    if precision == "auto":
        # Emulated, as on GPUs before Ampere, it would be slower than float32.
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if has_it else "float32"
    return Precision(precision, torch.bfloat16 if precision == "bfloat16" else torch.float32)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context in which float32 products and convolutions on a GPU are exact ('float32') or may use TF32 (others)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def choose_compile(compile: str | bool, device: torch.device, binding: str = "train.compile") -> bool:
    """Whether to compile; 'auto': on a GPU with a compiler. Raises ValueError: True without one, or another value."""
    if compile not in ("auto", True, False):
        raise ValueError(f"{binding} = {compile!r}: it is 'auto', True or False")
    if compile is False or (compile == "auto" and device.type != "cuda"):
        return False
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "the package triton"
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
        missing = "a C++ compiler (Debian: the package g++)"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():  # what is compiled is called from Python
        missing = "Python.h (Debian: the package python3-dev)"
    else:
        return True
    if compile == "auto":
        return False
    raise ValueError(f"{binding} = True needs {missing}, which is not here: install it, or set {binding} = False")


def compiled_whole(function: Callable, mode: str | None = None) -> Callable:
    """`function` by torch.compile, as one graph for every set of shapes, without a limit to their number."""
    dynamo = torch._dynamo.config  # torch refuses a ninth graph of one function, over all calls in the process
    dynamo.recompile_limit = max(dynamo.recompile_limit, dynamo.accumulated_recompile_limit)
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
