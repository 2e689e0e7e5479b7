"""A shard: one safetensors file that holds some rows of every tensor, written atomically, read by memory map."""

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
NAMES = "names.json"  # a tensor of bytes: safetensors has no strings; no channel group has a dot in its name


def with_names(rows: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a shard's file: (rows, ...) and the images' names as JSON."""
    text = np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8)
    return dict(rows) | {NAMES: torch.from_numpy(text.copy())}


def map_shard(path: Path, record: Mapping, tensors: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The tensors of a shard as read-only arrays on the disk's pages; "names.json" as bytes.

    Args:
        record: the entry of the manifest: file, rows, bytes, sha256.
        tensors: name -> {"dtype": as safetensors writes it, "shape": of one row}, for every tensor.

    Raises BrokenArtefact where the file is missing or cut short, or its header is not that of such a shard.
    """
    if not path.exists():
        raise BrokenArtefact(f"{path} is missing: {remedy(path)}")
    if (size := path.stat().st_size) != record["bytes"]:
        raise BrokenArtefact(f"{path} has {size} bytes instead of {record['bytes']}: cut short? {remedy(path)}")
    arrays = {}
    try:
        with safe_open(path, "pt") as file:  # maps the file, and closes it: a process may be limited to 1,024 open ones
            for name in (*tensors, NAMES):
                arrays[name] = file.get_tensor(name).numpy()
                arrays[name].flags.writeable = False
    except (SafetensorError, TypeError, RuntimeError) as error:  # TypeError: a dtype that NumPy does not know
        raise BrokenArtefact(f"{path} is damaged: {error}; {remedy(path)}") from None
    for name, expected in tensors.items():
        array, shape = arrays[name], (record["rows"], *expected["shape"])
        if array.shape != shape or array.dtype != DTYPES[expected["dtype"]]:
            what = f"{name!r} is {array.dtype} {array.shape}; the manifest says {expected['dtype']} {shape}"
            raise BrokenArtefact(f"{path} is damaged: {what}; {remedy(path)}")
    return arrays


def read_ahead(rows: np.ndarray) -> None:
    """Asks the system to bring consecutive rows of a mapped tensor into memory, and does not wait for it."""
    if (advice := getattr(mmap, "MADV_WILLNEED", None)) is None or not rows.nbytes:  # Windows
        return
    # By address, since the mapping is torch's. Advice only: what the system answers changes nothing.
    start = rows.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = rows.ctypes.data + rows.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def shard_tensors(rows: Mapping[str, Tensor]) -> dict[str, dict]:
    """The `tensors` argument of `map_shard`, of what is about to be written."""
    code = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    tensors = {}
    for name, tensor in rows.items():
        if (dtype := tensor.numpy().dtype) not in code:
            raise ValueError(f"{name!r} has dtype {dtype}; a cache stores {', '.join(map(str, code))}")
        tensors[name] = {"dtype": code[dtype], "shape": list(tensor.shape[1:])}
    return tensors


def describes_shards(manifest: Mapping) -> bool:
    """Whether the entries of a cache's manifest by which tensors are found are valid; its hash proves nothing."""
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
    """Raises BrokenArtefact unless all lie in [0, num_classes)."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        row = int(outside[0])
        first = f"first {labels[row]} at row {row}"
        raise BrokenArtefact(f"{where} holds labels outside [0, {num_classes}), {first}: {remedy}")


def remedy(path: Path) -> str:
    return f"delete {path.parent} and run prepare again"
