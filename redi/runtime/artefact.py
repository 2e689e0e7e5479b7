"""Artefacts: folders written atomically, with tensors as safetensors files, a JSON record, and checksums of both."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redi.runtime.atomic import atomic_folder, save_tensors, write_json
from redi.runtime.checksums import BrokenArtefact, hashes_of, sealed, unsealed

RECORD = "record.json"
TENSORS = ".safetensors"


def save_artefact(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], record: Mapping, *,
    extra: Mapping[str, str | bytes] | None = None, ready: Mapping[str, Path] | None = None, shared: bool = False,
) -> None:  # fmt: skip
    """Write `<folder>/<group>.safetensors` for every group of tensors and `<folder>/record.json` atomically.

    Args:
        extra: further files, {file name: content}; text is written as UTF-8.
        ready: groups that are already written, {group: safetensors file}; the files are moved within a file system.
        shared: several processes may write the same artefact at once.

    Raises OSError if the disk is full or not writable; no files are left then.
    """
    folder = Path(folder)
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in (extra or {}).items()}
    needed = sum(t.nbytes for group in tensors.values() for t in group.values()) + sum(map(len, contents.values()))
    with atomic_folder(folder, needed, shared) as temporary:
        for name, group in tensors.items():
            save_tensors(temporary / f"{name}{TENSORS}", group)
        for name, path in (ready or {}).items():
            path.replace(temporary / f"{name}{TENSORS}")
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        hashes = hashes_of(sorted(temporary.iterdir()))
        files = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in hashes.items()}
        write_record(temporary, {**record, "files": files})


def load_artefact(
    folder: Path, *, groups: Collection[str] | None = None, editable: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Load and verify an artefact; return {group: {name: tensor}} and the record.

    Args:
        groups: read and verify only these groups, where they exist; default: all files.
        editable: names of files that may be changed or missing.

    Raises BrokenArtefact, naming the file and the cause.
    """
    record, files = verify_artefact(folder, groups=groups, editable=editable)
    return {path.stem: load_tensors(path) for path in files if path.suffix == TENSORS}, record


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load a safetensors file. Raises BrokenArtefact if it is malformed."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BrokenArtefact(f"{path} is not a safetensors file: {error}") from None


def verify_artefact(
    folder: Path, *, groups: Collection[str] | None = None, editable: Collection[str] = ()
) -> tuple[dict, list[Path]]:
    """Verify an artefact's files as `load_artefact` does; return its record and the paths. Raises BrokenArtefact."""
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
    """Raise BrokenArtefact if a file is missing or does not have expected["bytes"] bytes."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise BrokenArtefact(f"{path} is missing") from None
    if size != expected["bytes"]:
        raise BrokenArtefact(f"{path} has {size} bytes instead of {expected['bytes']}; it may be truncated")


def read_record(folder: Path) -> dict:
    """Read the record of an artefact without its tensors. Raises BrokenArtefact."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenArtefact(f"{path} is missing: the folder was not written by redi, or is incomplete") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenArtefact(f"{path} is not JSON: {error}") from None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(entry, dict) and {"bytes", "sha256"} <= set(entry) for entry in files.values()
    ):
        raise BrokenArtefact(f"{path} was not written by redi: it has no list of files")
    if outside := [name for name in files if Path(name).name != name]:
        raise BrokenArtefact(f"{path} was not written by redi: {outside[0][:200]!r} is not a file name")
    return unsealed(record, path)


def write_record(folder: Path, record: Mapping) -> None:
    """Write the record, which must list `files`, with its own hash; `read_record` reads it."""
    write_json(Path(folder) / RECORD, sealed(record))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict]:
    """Split an optimizer's state, of parameters with these names, into tensors '<name>/<entry>' and a JSON record."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else others)[f"{names[index]}/{key}"] = value
    return tensors, {"param_groups": state["param_groups"], "others": others}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping, record: Mapping) -> None:
    """Load the output of `optimizer_tensors`; entries of parameters that the model no longer has are ignored."""
    index = {name: i for i, name in enumerate(names)}
    state: dict[int, dict] = {}
    for key, value in {**tensors, **record["others"]}.items():
        name, entry = key.rsplit("/", 1)
        if name in index:
            state.setdefault(index[name], {})[entry] = value
    groups = zip(record["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
    param_groups = [{**stored, "params": current["params"]} for stored, current in groups]
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})
