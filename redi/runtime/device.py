"""Choose the device, the precision and whether to compile."""

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
from redi.runtime.ranges import check_choice

PRECISIONS = ("float32", "tf32", "bfloat16")


class Precision(NamedTuple):
    """The precision of a network: its `name` in PRECISIONS, and the `dtype` of matrix products under autocast."""

    name: str
    dtype: torch.dtype

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the autocast context for a forward pass on `device`; it has no effect for float32 and tf32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


def choose_device(device: str) -> torch.device:
    """Return the device; 'auto' is the GPU if there is one, else the CPU. Raises ValueError if it is not available."""
    complete_account()  # every program calls this function before torch looks up the user
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"train.device = {device!r} is not available: {cause}. Set train.device = 'auto'") from None
    return chosen


def local_device(device: torch.device) -> torch.device:
    """Select this process's GPU by its local rank (torchrun or Slurm); return other devices unchanged."""
    if device.type != "cuda":
        return device
    if device.index is None:
        local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
        device = torch.device("cuda", int(local) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def free_memory(device: torch.device) -> tuple[int, int]:
    """Return free and total memory in bytes. On the CPU, control groups limit both, and free memory includes swap."""
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
    available = min([host["MemAvailable"], *(limit - used for limit, used in limits)]) + host["SwapFree"]
    return int(max(available, 0)), int(min([host["MemTotal"], *(limit for limit, _ in limits)]))


def group_memory(root: Path, path: str) -> tuple[float, float]:
    """Return limit (inf if unset) and usage in bytes of a control group, or of the parent with the least left."""
    tightest = (math.inf, 0.0)
    for folder in (root / path, *(root / path).parents):
        for limit, used, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),  # cgroup version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            try:
                text = (folder / limit).read_text().strip()
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                usage = int((folder / used).read_text()) - int(statistics[reclaimable])
                group = float(text.replace("max", "inf")), float(usage)
            except (OSError, KeyError):
                continue
            tightest = min(tightest, group, key=lambda group: group[0] - group[1])
    return tightest


def device_name(device: torch.device) -> str:
    """Return a name such as 'NVIDIA H200' or 'CPU, 2 threads'."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def choose_precision(precision: str, device: torch.device, binding: str = "train.precision") -> Precision:
    """Return the precision; 'auto' is bfloat16 on a GPU that supports it, else float32. Raises ValueError."""
    check_choice(binding, precision, ("auto", *PRECISIONS))
    if precision == "auto":
        # GPUs before Ampere emulate bfloat16, which is slower than float32.
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if supported else "float32"
    return Precision(precision, torch.bfloat16 if precision == "bfloat16" else torch.float32)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Context in which float32 operations on a GPU use full precision ('float32') or may use TF32 (other names)."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def choose_compile(compile: str | bool, device: torch.device, binding: str = "train.compile") -> bool:
    """Return whether to compile; 'auto' compiles on a GPU if a C++ compiler is installed. Raises ValueError."""
    check_choice(binding, compile, ("auto", True, False))
    if compile is False or (compile == "auto" and device.type != "cuda"):
        return False
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        missing = "the package triton"
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
        missing = "a C++ compiler (Debian: the package g++)"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():  # for the generated Python bindings
        missing = "Python.h (Debian: the package python3-dev)"
    else:
        return True
    if compile == "auto":
        return False
    raise ValueError(f"{binding} = True needs {missing}, which was not found: install it or set {binding} = False")


def compile_full_graph(function: Callable, mode: str | None = None) -> Callable:
    """Compile a function with torch.compile into one graph per set of shapes, with a higher limit on their number."""
    dynamo = torch._dynamo.config  # by default torch refuses a ninth graph of one function in a process
    dynamo.recompile_limit = max(dynamo.recompile_limit, dynamo.accumulated_recompile_limit)
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)
