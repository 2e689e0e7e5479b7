"""Files that are either whole or not there: tensors as safetensors, everything else as JSON, hashed."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

RECORD = "record.json"
TENSORS = ".safetensors"


class BrokenArtefact(ValueError):
    """A folder that is not what it should be: truncated, altered, or made by something else."""


def save_artefact(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    record: Mapping,
    *,
    extra: Mapping[str, str | bytes] | None = None,
    shared: bool = False,
) -> None:
    """Writes `<folder>/<name>.safetensors` for every group and `<folder>/record.json`, atomically.

    The files are written beside the final place, synced and renamed together, so that a crash or a full disk
    leaves either the whole artefact or none. The record lists every file with its size and SHA-256.

    Args:
        extra: {file name: content} of further files; text is written as UTF-8.
        shared: several processes may write the same one at once.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    folder = Path(folder)
    extra = {name: content.encode() if isinstance(content, str) else content for name, content in (extra or {}).items()}
    needed = sum(t.nbytes for group in tensors.values() for t in group.values()) + sum(map(len, extra.values()))
    with (shared_folder if shared else atomic_folder)(folder, needed_bytes=needed) as temporary:
        for name, group in tensors.items():
            path = temporary / f"{name}{TENSORS}"
            save_file({key: t.detach().cpu().contiguous() for key, t in group.items()}, path)
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        written = [temporary / name for name in (*(f"{name}{TENSORS}" for name in tensors), *extra)]
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in written}
        write_json(temporary / RECORD, {**record, "files": files})


def load_artefact(folder: Path, *, editable: Collection[str] = ()) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """-> {group: {name: tensor}} of the .safetensors files and the record; all files that it lists are verified.

    Args:
        editable: files that may have been changed or removed since, and are not looked at.

    Raises:
        BrokenArtefact: naming the file and the cause.
    """
    record = read_record(folder)
    tensors = {}
    for file, expected in record["files"].items():
        if file in editable:
            continue
        path = Path(folder) / file
        if not path.exists():
            raise BrokenArtefact(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise BrokenArtefact(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}: truncated?")
        if sha256(path) != expected["sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its SHA-256 differs from {RECORD}")
        if path.suffix != TENSORS:
            continue
        try:
            tensors[path.stem] = load_file(path)
        except SafetensorError as error:
            raise BrokenArtefact(f"{path} is not a safetensors file: {error}") from None
    return tensors, record


def read_record(folder: Path) -> dict:
    """The record of an artefact, without its tensors. Raises BrokenArtefact."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenArtefact(f"{path} is missing: this folder was not written by redi, or not completely") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenArtefact(f"{path} is not JSON: {error}") from None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(f, dict) and {"bytes", "sha256"} <= set(f) for f in files.values()
    ):
        raise BrokenArtefact(f"{path} was not written by redi: it lists no files")
    return record


@contextlib.contextmanager
def atomic_folder(folder: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    A folder that is there already is replaced; readers may miss it for a moment. What is named by a hash of its
    contents, and so may be written by several processes at once, goes through `shared_folder`.
    """
    with _temporary_folder(Path(folder), needed_bytes) as temporary:
        yield temporary
        _sync(temporary)
        before = temporary.with_suffix(".replaced")
        if folder.exists():
            folder.rename(before)
        try:
            temporary.rename(folder)
        except OSError:
            if before.exists():
                before.rename(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def shared_folder(folder: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """As `atomic_folder`, but where another process was first, its folder stays and this one's is dropped."""
    with _temporary_folder(Path(folder), needed_bytes) as temporary:
        yield temporary
        _sync(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise


@contextlib.contextmanager
def _temporary_folder(folder: Path, needed_bytes: int) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes * 1.01:
        raise OSError(f"no space for {folder}: {needed_bytes / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free")
    # Unique over machines too: several may write to one file system.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    temporary.mkdir()
    try:
        yield temporary
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise OSError(f"could not write {folder}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Forces the files of a folder to the disk."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def write_json(path: Path, value) -> None:
    """Writes JSON atomically, readable by people; several processes may write one file at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of named tensors, in the order of their names, wherever they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict]:
    """An optimizer's state as tensors named '<parameter>/<entry>' and JSON; `names` in the optimizer's order."""
    state = optimizer.state_dict()
    tensors, others = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else others)[f"{names[index]}/{key}"] = value
    return tensors, {"param_groups": state["param_groups"], "others": others}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping, record: Mapping) -> None:
    """The inverse of `optimizer_tensors`."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict] = {}
    for key, value in {**tensors, **record["others"]}.items():
        name, entry = key.rsplit("/", 1)
        state.setdefault(index[name], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": record["param_groups"]})
