"""Checksums of files and tensors, and JSON that carries its own hash, so that damage is detected on reading."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from redi.runtime.progress import in_threads

OWN_HASH = "sha256_of_the_rest"  # hash of the other entries; files of earlier versions have none


class BrokenArtefact(ValueError):
    """A file or folder is missing, truncated, altered, or was not written by redi."""


def sealed(value: Mapping) -> dict:
    """Return the mapping with its own hash added as an entry."""
    return {**value, OWN_HASH: json_sha256(value)}


def unsealed(value: Mapping, path: Path) -> dict:
    """Check and remove the hash that `sealed` added, if any. Raises BrokenArtefact if it does not match."""
    rest = {key: entry for key, entry in value.items() if key != OWN_HASH}
    if OWN_HASH in value and value[OWN_HASH] != json_sha256(rest):
        raise BrokenArtefact(f"{path} was altered after it was written: its {OWN_HASH} does not match its content")
    return rest


def read_sealed(path: Path) -> dict | None:
    """Read a JSON file that holds the output of `sealed`; None if it does not exist. Raises BrokenArtefact."""
    try:
        return unsealed(json.loads(path.read_text()), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, BrokenArtefact) else BrokenArtefact(f"{path} is damaged: {error}") from None


def json_sha256(value) -> str:
    """Return the hex SHA-256 of a value as JSON, independent of indentation and the order of keys."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the hex SHA-256 of each file, read by several threads."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def altered_files(records: Mapping[Path, str]) -> list[Path]:
    """Return the paths in `records`, {path: SHA-256}, whose files are missing or altered."""
    paths, threads = list(records), min(4, os.cpu_count() or 1)
    hashes = in_threads(lambda path: sha256(path) if path.exists() else None, paths, threads, "verifying", "shard")
    return [path for path, digest in zip(paths, hashes, strict=True) if digest != records[path]]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 of named tensors, sorted by name; the device does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


LIBRARIES = {"timm", "diffusers"}  # entries of an encoder's provenance that hold library versions


def without_versions(provenance: dict) -> dict:
    """Remove library versions from a provenance, because upgrading a library does not change the encoder."""
    rest = {name: value for name, value in provenance.items() if name not in LIBRARIES}
    return {name: without_versions(value) if isinstance(value, dict) else value for name, value in rest.items()}
