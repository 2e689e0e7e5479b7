"""Folders that are either whole or not there: tensors as safetensors, everything else as JSON, hashed."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redi.runtime.atomic import atomic_folder, save_tensors, write_json
from redi.runtime.checksums import BrokenArtefact, hashes_of, sealed, unsealed

RECORD = "record.json"
TENSORS = ".safetensors"


def save_artefact(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    record: Mapping,
    *,
    extra: Mapping[str, str | bytes] | None = None,
    ready: Mapping[str, Path] | None = None,
    shared: bool = False,
) -> None:
    """Writes `<folder>/<name>.safetensors` for every group and `<folder>/record.json`, all of it or nothing.

    Args:
        extra: {file name: content} of further files; text is written as UTF-8.
        ready: {group: safetensors file} of further groups on the same file system; they are moved.
        shared: several processes may write the same one at once.

    Raises OSError: the disk is full or not writable; nothing is left behind.
    """
    folder = Path(folder)
    extra = {name: content.encode() if isinstance(content, str) else content for name, content in (extra or {}).items()}
    needed = sum(t.nbytes for group in tensors.values() for t in group.values()) + sum(map(len, extra.values()))
    with atomic_folder(folder, needed, shared) as temporary:
        for name, group in tensors.items():
            save_tensors(temporary / f"{name}{TENSORS}", group)
        for name, path in (ready or {}).items():
            path.replace(temporary / f"{name}{TENSORS}")
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        hashes = hashes_of(sorted(temporary.iterdir()))
        files = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in hashes.items()}
        write_record(temporary, {**record, "files": files})


def load_artefact(
    folder: Path, *, groups: Collection[str] | None = None, editable: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """-> {group: {name: tensor}} of the .safetensors files and the record; every file that is read is verified.

    With `groups`, only the existing ones of these are read and verified; `editable` files may be changed or removed.
    Raises BrokenArtefact, naming the file and the cause.
    """
    record, files = verify_artefact(folder, groups=groups, editable=editable)
    return {path.stem: load_tensors(path) for path in files if path.suffix == TENSORS}, record


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises BrokenArtefact where it is none."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BrokenArtefact(f"{path} is not a safetensors file: {error}") from None


def verify_artefact(
    folder: Path, *, groups: Collection[str] | None = None, editable: Collection[str] = ()
) -> tuple[dict, list[Path]]:
    """The record, and the files (of these `groups` alone) that were read and are as written. Raises BrokenArtefact."""
    record = read_record(folder)
    files = {Path(folder) / name: entry for name, entry in record["files"].items() if name not in editable}
    if groups is not None:
        files = {path: entry for path, entry in files.items() if path.suffix == TENSORS and path.stem in groups}
    for path, entry in files.items():
        check_size(path, entry)
    for path, digest in hashes_of(list(files)).items():
        if digest != files[path]["sha256"]:
            raise BrokenArtefact(f"{path} was altered after it was written: its SHA-256 differs from {RECORD}")
    return record, list(files)


def check_size(path: Path, expected: Mapping) -> None:
    """Raises BrokenArtefact unless a file is there in the length that its record expects."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise BrokenArtefact(f"{path} is missing") from None
    if size != expected["bytes"]:
        raise BrokenArtefact(f"{path} has {size} bytes instead of {expected['bytes']}: truncated?")


def read_record(folder: Path) -> dict:
    """The record of an artefact, without its tensors. Raises BrokenArtefact."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenArtefact(f"{path} is missing: this folder was not written by redi, or not completely") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenArtefact(f"{path} is not JSON: {error}") from None
    files = record.get("files") if isinstance(record, dict) else None
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= set(entry) for entry in entries):
        raise BrokenArtefact(f"{path} was not written by redi: it lists no files")
    if outside := [name for name in files if Path(name).name != name]:
        raise BrokenArtefact(f"{path} was not written by redi: {outside[0][:200]!r} in it is no name of a file")
    return unsealed(record, path)


def write_record(folder: Path, record: Mapping) -> None:
    """Writes what `read_record` reads: the record, which lists `files`, and its own hash."""
    write_json(Path(folder) / RECORD, sealed(record))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict]:
    """An optimizer's state as tensors named '<parameter>/<entry>' and JSON; `names` in the optimizer's order."""
    state = optimizer.state_dict()
    tensors, others = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else others)[f"{names[index]}/{key}"] = value
    return tensors, {"param_groups": state["param_groups"], "others": others}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping, record: Mapping) -> None:
    """The inverse of `optimizer_tensors`. Entries of parameters that the model no longer has are left out."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict] = {}
    for key, value in {**tensors, **record["others"]}.items():
        name, entry = key.rsplit("/", 1)
        if name in index:
            state.setdefault(index[name], {})[entry] = value
    own = optimizer.state_dict()["param_groups"]
    stored = [{**group, "params": mine["params"]} for group, mine in zip(record["param_groups"], own, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": stored})
