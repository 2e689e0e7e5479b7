"""Shards: safetensors files that hold a range of rows of every tensor, and are read by memory map."""

import ctypes
import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redi.runtime.checksums import BrokenArtefact

DTYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "I64": np.int64}
NAMES = "names.json"  # a tensor of JSON bytes, because safetensors has no strings; channel groups have no dot


def with_names(rows: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Add the names of the images, as a tensor of JSON bytes, to the tensors (rows, ...) of a shard."""
    text = np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8)
    return dict(rows) | {NAMES: torch.from_numpy(text.copy())}


def map_shard(path: Path, record: Mapping, tensors: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Map the tensors of a shard as read-only arrays; "names.json" is an array of bytes.

    Args:
        record: the shard's entry in the manifest: file, rows, bytes, sha256.
        tensors: {name: {"dtype": safetensors name, "shape": of one row}} for every tensor.

    Raises BrokenArtefact if the file is missing or truncated, or its header does not match.
    """
    if not path.exists():
        raise BrokenArtefact(f"{path} is missing: {remedy(path)}")
    if (size := path.stat().st_size) != record["bytes"]:
        raise BrokenArtefact(f"{path} has {size} bytes instead of {record['bytes']}: {remedy(path)}")
    arrays = {}
    try:
        with safe_open(path, "pt") as file:  # closed after mapping: a process may be limited to 1,024 open files
            for name in (*tensors, NAMES):
                arrays[name] = file.get_tensor(name).numpy()
                arrays[name].flags.writeable = False
    except (SafetensorError, TypeError, RuntimeError) as error:  # TypeError: a dtype that NumPy does not have
        raise BrokenArtefact(f"{path} is damaged: {error}; {remedy(path)}") from None
    for name, expected in tensors.items():
        array, shape = arrays[name], (record["rows"], *expected["shape"])
        if array.shape != shape or array.dtype != DTYPES[expected["dtype"]]:
            cause = f"{name!r} is {array.dtype} {array.shape}, but the manifest says {expected['dtype']} {shape}"
            raise BrokenArtefact(f"{path} is damaged: {cause}; {remedy(path)}")
    return arrays


def read_ahead(rows: np.ndarray) -> None:
    """Ask the system to read consecutive rows of a mapped tensor into memory; return at once."""
    if (advice := getattr(mmap, "MADV_WILLNEED", None)) is None or not rows.nbytes:  # Windows
        return
    # By address, because torch owns the mapping. The result is ignored: this is only advice.
    start = rows.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = rows.ctypes.data + rows.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def shard_tensors(rows: Mapping[str, Tensor]) -> dict[str, dict]:
    """Return the `tensors` argument of `map_shard` for these rows. Raises ValueError if a dtype cannot be stored."""
    code = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    tensors = {}
    for name, tensor in rows.items():
        if (dtype := tensor.numpy().dtype) not in code:
            raise ValueError(f"{name!r} has dtype {dtype}, but a cache stores only {', '.join(map(str, code))}")
        tensors[name] = {"dtype": code[dtype], "shape": list(tensor.shape[1:])}
    return tensors


def describes_shards(manifest: Mapping) -> bool:
    """Return whether the entries of a manifest that locate tensors are valid; a correct hash does not imply this."""
    try:
        shards, tensors = manifest["shards"], manifest["tensors"]
        numbers = [manifest["num_classes"], manifest["image_size"], manifest["rows"]]
        numbers += [shard[name] for shard in shards for name in ("rows", "bytes")]
        numbers += [side for tensor in tensors.values() for side in tensor["shape"]]
        return (
            all(type(number) is int and number >= 0 for number in numbers)
            and manifest["rows"] == sum(shard["rows"] for shard in shards)
            and all(Path(shard["file"]).name == shard["file"] and isinstance(shard["sha256"], str) for shard in shards)
            and all(tensor["dtype"] in DTYPES for tensor in tensors.values())
            and tensors["labels"] == {"dtype": "I64", "shape": []}
        )
    except (TypeError, KeyError, AttributeError):
        return False


def check_labels(labels: np.ndarray, num_classes: int, where: str, remedy: str) -> None:
    """Raise BrokenArtefact if a label is outside [0, num_classes)."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        row = int(outside[0])
        first = f"first {labels[row]} at row {row}"
        raise BrokenArtefact(f"{where} has labels outside [0, {num_classes}), {first}: {remedy}")


def remedy(path: Path) -> str:
    """Return the advice for a damaged file of a cache."""
    return f"delete {path.parent} and rerun prepare"
