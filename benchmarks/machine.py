"""The environment of a measurement: machine, versions and commit; and the peak memory of a process."""

import datetime
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "xformers", "flash_attn_3", "timm", "diffusers", "numpy", "safetensors", "webdataset")


def environment(device: str) -> dict:
    """Return machine, versions, commit and date of a measurement."""
    import torch

    import redi

    versions = {"python": platform.python_version(), "redi": redi.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
    }
    if str(device).startswith("cuda"):
        gpu = torch.cuda.get_device_properties(0)
        machine |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**machine, "versions": versions, "commit": _commit(), "date": now}


def peak_memory_gib() -> float:
    """Return the peak memory of this process: torch's allocator if a GPU is in use, else resident memory."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    try:  # not ru_maxrss, which starts at the peak of the parent process
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes on macOS, else KiB


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Return the commit, with a + if the library or the benchmarks have uncommitted changes."""

    def git(*command: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parents[1]), *command]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError:  # git is not installed
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "redi", ":(glob)benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
