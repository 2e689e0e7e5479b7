"""Read weights files from other sources without running any code they contain."""

import argparse
import contextlib
import errno
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
INDEX = ".index.json"  # lists the shards of a file: {"weight_map": {tensor: file}}
NUMPY_NUMBER = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
MAX_ENTRIES = 10_000  # in a zip archive, whose reader creates an object per entry
MAX_TUPLES = 100_000  # in a pickle; a checkpoint of XL/2 with its optimizer has 10,000


class Inert:
    """The stand-in for a pickled object that is not constructed; holds its constructor arguments and its state."""

    arguments: tuple
    state: Any

    def __new__(cls, *arguments):
        inert = super().__new__(cls)
        inert.arguments, inert.state = arguments, None
        return inert

    def __setstate__(self, state):
        self.state = state


def read_weights_file(path: Path, *, inert: Iterable[str] = ()) -> object:
    """Load a file written by safetensors or `torch.save` without executing anything in it.

    Args:
        inert: full names of classes and functions to accept besides tensors, plain values and argparse.Namespace.
            They are never imported or called; each of their objects is loaded as an `Inert`.

    Raises ValueError if the file is truncated, not a weights file, or needs a class that could run code. The messages
    of this module continue a sentence that starts with the file name.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_unpacked_size(path)
        _check_nesting(path)
        accepted: list = [argparse.Namespace, *((Inert, name) for name in inert)]
        with torch.serialization.safe_globals(accepted), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a malformed file can raise any exception
        # torch raises EINVAL for a truncated zip file. Other system errors do not concern the content of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(_reason(path, str(error) or type(error).__name__, {"argparse.Namespace", *inert})) from None


def read_weights(path: Path) -> tuple[tuple[Path, ...], object]:
    """Load a weights file, or the shards that an index lists; return the files and the content. Raises ValueError."""
    if not path.name.endswith(INDEX):
        return (path,), read_weights_file(path, inert=NUMPY_NUMBER)
    try:
        weight_map = dict(json.loads(path.read_text())["weight_map"])
        files = {name: path.with_name(Path(name).name) for name in sorted(set(weight_map.values()))}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"is not an index of shards, {{'weight_map': {{tensor: file}}}} ({error!r:.200})") from None
    if missing := [file.name for file in files.values() if not file.is_file()]:
        count = f"{len(missing)} of {len(files)} shards are missing from {path.parent}"
        raise ValueError(f"lists {', '.join(missing[:5])}, but {count}: download them")
    shards = {}
    for name, file in files.items():
        try:
            shards[name] = dict(read_weights_file(file))  # type: ignore[call-overload]  # TypeError is handled
        except (ValueError, TypeError) as error:
            raise ValueError(f"lists {name}, which {error}") from None
    if absent := [tensor for tensor, name in weight_map.items() if tensor not in shards[name]]:
        shard = weight_map[absent[0]]
        raise ValueError(f"lists {absent[0]} in {shard}, which lacks it: download the shards and the index again")
    return tuple(files.values()), {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def find_weights_file(path: Path) -> Path:
    """Return `path`; for a folder, return its index of shards or its only weights file. Raises ValueError."""
    if not path.is_dir():
        if not path.exists():
            raise ValueError("is not a file or folder: download it, or correct the path")
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    indices = sorted(path.glob(f"*{INDEX}"), key=lambda index: ".safetensors" not in index.name)
    if indices or len(files) == 1:
        return [*indices, *files][0]
    names = f"with {', '.join(file.name for file in files[:10])}" if files else f"without a file {', '.join(SUFFIXES)}"
    raise ValueError(f"is a folder {names}: give the path of one weights file")


def bare_name(name: str) -> str:
    """Return a parameter's name without the prefixes added by DistributedDataParallel and torch.compile."""
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))


def number(value: Any) -> int | float | None:
    """Return a Python or NumPy number, also one loaded as `Inert`, or a tensor's element as a number, else None."""
    try:
        if isinstance(value, Inert):
            dtype, data = value.arguments
            value = np.frombuffer(data, f"{dtype.state[1]}{dtype.arguments[0]}")
        value = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError):
        return None
    return value if type(value) in (int, float) else None


def check_unpacked_size(path: Path) -> None:
    """Raise ValueError if a zip archive is damaged, has too many entries, or unpacks to more than its own size."""
    try:
        if not zipfile.is_zipfile(path):  # may raise on damage
            return
        with open(path, "rb") as file:  # the directory is at the end
            file.seek(max(0, path.stat().st_size - 2**22))
            too_many = file.read().count(b"PK\x01\x02") > MAX_ENTRIES
        if not too_many:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile raises many kinds of exceptions on damaged input
        raise ValueError(f"is not an intact zip archive ({type(error).__name__}: {str(error)[:200]})") from None
    if too_many:
        raise ValueError(f"has too many entries: at most {MAX_ENTRIES} are read")
    if unpacked > path.stat().st_size:  # torch.save compresses nothing
        raise ValueError(f"has entries of {unpacked:,} bytes, more than the archive itself")


def _check_nesting(path: Path) -> None:
    """Raise ValueError if a pickle has enough nested tuples that hashing them could overflow the stack and crash."""
    most = 0
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # damaged files are refused later
        files: list[Any]
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            files = [stack.enter_context(archive.open(name)) for name in archive.namelist() if name.endswith(".pkl")]
        else:  # the older format has up to five consecutive pickles
            files = [stack.enter_context(open(path, "rb"))] * 5
        for file in files:
            most = max(most, sum(code.name.startswith("TUPLE") for code, _, _ in pickletools.genops(file)))
    if most > MAX_TUPLES:
        raise ValueError(f"has a pickle with {most} tuples; at most {MAX_TUPLES} are read")


def check_tensors(tensors: Iterable[Tensor], num_bytes: int) -> None:
    """Raise ValueError for a tensor that is not dense or not on the CPU, or is larger than its file of `num_bytes`."""
    for tensor in tensors:  # sparse tensors and strides of 0 may claim any size, and copies would fill the memory
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = f"{tensor.layout} on {tensor.device}"
            raise ValueError(f"has a tensor that is {kind}; only dense CPU tensors are read")
        if tensor.numel() * tensor.element_size() > num_bytes:
            raise ValueError(f"has a tensor of shape {tuple(tensor.shape)}, which is larger than the file")


def _reason(path: Path, message: str, accepted: set[str]) -> str:
    """Explain what is wrong with a file, without PyTorch's advice to disable the check."""
    if match := re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", message):
        names = {match[1]}
        with contextlib.suppress(Exception):  # lists all classes, if the file is a zip archive
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - accepted or names
        return (
            f"was refused: besides tensors it contains {', '.join(sorted(names))[:500]}, and loading such objects can "
            "run code. No code was run. If you trust the file, load it where it was created and save only the state "
            "dict"
        )
    reason = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0].partition(" Please use")[0]
    if "weights_only" in reason:
        reason = "a pickle without tensors"
    return f"is truncated or not a file of tensors ({reason[:500]}): download it again"
