"""Files of tensors that other people made, read without running any code in them."""

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

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
INDEX = ".index.json"  # beside shards: {"weight_map": {tensor: file}}
NUMPY_NUMBER = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
MAX_ENTRIES = 10_000  # of a zip archive: its reader makes an object of each
MAX_TUPLES = 100_000  # of a pickle; a checkpoint of XL/2 with its optimizer has 10,000


class Inert:
    """An object in a pickle that is not built: the arguments and the state that it would be built from."""

    def __new__(cls, *arguments):
        inert = super().__new__(cls)
        inert.arguments, inert.state = arguments, None
        return inert

    def __setstate__(self, state):
        self.state = state


def read_weights_file(path: Path, *, inert: Iterable[str] = ()) -> object:
    """What safetensors or `torch.save` wrote; nothing in the file is executed.

    Args:
        inert: full names of classes and functions that may occur beside tensors, plain values and argparse.Namespace.
            They are never imported or called: an `Inert` takes the place of what they would make.

    Raises:
        ValueError: truncated, something else, or a class that would run code; the message follows the name of the file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_unpacked_size(path)
        _check_nesting(path)
        accepted = [argparse.Namespace, *((Inert, name) for name in inert)]
        with torch.serialization.safe_globals(accepted), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a malformed file can raise anything
        # Of a truncated zip file torch's reader says "invalid argument"; other errors of the system are not the file's.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(_reason(path, str(error) or type(error).__name__, {"argparse.Namespace", *inert})) from None


def read_weights(path: Path) -> tuple[tuple[Path, ...], object]:
    """The files that a weights file means (itself, or shards of which it is the index), and what they hold together.
    NumPy's numbers are left inert. Raises ValueError, which follows the path, as `read_weights_file` does.
    """
    if not path.name.endswith(INDEX):
        return (path,), read_weights_file(path, inert=NUMPY_NUMBER)
    try:
        places = dict(json.loads(path.read_text())["weight_map"])
        files = {name: path.with_name(Path(name).name) for name in sorted(set(places.values()))}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"is not an index of shards, {{'weight_map': {{tensor: file}}}} ({error!r:.200})") from None
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise ValueError(f"lists {', '.join(missing[:5])}, not in {path.parent}: {len(missing)} of {len(files)} shards")
    shards = {}
    for name, file in files.items():
        try:
            shards[name] = dict(read_weights_file(file))
        except (ValueError, TypeError) as error:
            raise ValueError(f"lists {name}, which {error}") from None
    if absent := [tensor for tensor, name in places.items() if tensor not in shards[name]]:
        raise ValueError(f"lists {absent[0]} in {places[absent[0]]}, which lacks it: shards of another save")
    return tuple(files.values()), {tensor: shards[name][tensor] for tensor, name in places.items()}


def find_weights_file(path: Path) -> Path:
    """The file itself; of a folder its index of shards, or else its only weights file. Raises ValueError."""
    if not path.is_dir():
        if not path.exists():
            raise ValueError("is not a file or folder")
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    indices = sorted(path.glob(f"*{INDEX}"), key=lambda index: ".safetensors" not in index.name)
    if indices or len(files) == 1:
        return [*indices, *files][0]
    names = ", ".join(file.name for file in files[:10]) or f"no file that ends in {', '.join(SUFFIXES)}"
    raise ValueError(f"is a folder that holds {names}: name one weights file")


def bare_name(name: str) -> str:
    """A parameter's name without the prefixes of DistributedDataParallel and torch.compile."""
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))


def number(value: object) -> int | float | None:
    """A number of Python or NumPy (inert too), or the only one of a tensor; None for anything else."""
    try:
        if isinstance(value, Inert):
            dtype, data = value.arguments
            value = np.frombuffer(data, f"{dtype.state[1]}{dtype.arguments[0]}")
        value = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError):
        return None
    return value if type(value) in (int, float) else None


def check_unpacked_size(path: Path) -> None:
    """Raises ValueError where a zip archive, by its directory, would unpack to more than it has: torch.save compresses
    nothing.
    """
    try:
        if not zipfile.is_zipfile(path):  # which on some damage raises
            return
        with open(path, "rb") as file:  # the directory is last
            file.seek(max(0, path.stat().st_size - 2**22))
            too_many = file.read().count(b"PK\x01\x02") > MAX_ENTRIES
        if not too_many:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile raises a dozen kinds on damaged input
        raise ValueError(f"is not an intact zip archive ({type(error).__name__}: {str(error)[:200]})") from None
    if too_many:
        raise ValueError(f"has more than {MAX_ENTRIES} entries")
    if unpacked > path.stat().st_size:
        raise ValueError(f"holds entries larger than the archive: {unpacked:,} bytes")


def _check_nesting(path: Path) -> None:
    """Raises ValueError where hashing a key of nested tuples could exhaust the stack, which ends the process."""
    most = 0
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # what is damaged is refused later
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            files = [stack.enter_context(archive.open(name)) for name in archive.namelist() if name.endswith(".pkl")]
        else:  # in the older format up to five pickles, one after the other
            files = [stack.enter_context(open(path, "rb"))] * 5
        for file in files:
            most = max(most, sum(code.name.startswith("TUPLE") for code, _, _ in pickletools.genops(file)))
    if most > MAX_TUPLES:
        raise ValueError(f"holds a pickle of {most} tuples: more than {MAX_TUPLES} are not read")


def check_tensors(tensors: Iterable[Tensor], num_bytes: int) -> None:
    """Raises ValueError where a tensor is not a plain one, or is larger than the `num_bytes` of its file.

    A tensor with strides of 0, or a sparse one, may have any size: copying it to plain memory could exhaust that.
    """
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"holds a tensor that is {tensor.layout} on {tensor.device}, not a plain one")
        if tensor.numel() * tensor.element_size() > num_bytes:
            raise ValueError(f"holds a tensor of shape {tuple(tensor.shape)}, which is larger than the file")


def _reason(path: Path, message: str, accepted: set[str]) -> str:
    """What is wrong with a file, in place of PyTorch's advice to switch the check off."""
    if named := re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", message):
        names = {named[1]}
        with contextlib.suppress(Exception):  # of an archive of today's format, all of them
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - accepted or names
        return (
            f"was refused: beside tensors it holds {', '.join(sorted(names))[:500]}, and reading such objects can "
            "run code. Nothing was run. If you trust it, load it where it was made and save the state dict alone"
        )
    reason = message.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0].partition(" Please use")[0]
    if "weights_only" in reason:
        reason = "a pickle of something else"
    return f"is truncated, or holds something else than tensors ({reason[:500]}): download it again"
