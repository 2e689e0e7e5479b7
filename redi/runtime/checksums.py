"""JSON that carries a hash of itself, so that damage is seen when it is read."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from redi.runtime.progress import in_threads

OWN_HASH = "sha256_of_the_rest"  # the entries beside it; what earlier versions wrote has none


class BrokenArtefact(ValueError):
    """A folder that is not what it should be: truncated, altered, or made by something else."""


def sealed(value: Mapping) -> dict:
    """The same with a hash of itself: one flipped bit of the file either hits the hash, or is seen by it."""
    return {**value, OWN_HASH: json_sha256(value)}


def unsealed(value: Mapping, path: Path) -> dict:
    """The inverse of `sealed`, as read from `path`; without a hash, as it is. Raises BrokenArtefact."""
    rest = {key: entry for key, entry in value.items() if key != OWN_HASH}
    if OWN_HASH in value and value[OWN_HASH] != json_sha256(rest):
        raise BrokenArtefact(f"{path} was altered after it was written: its {OWN_HASH} is that of another content")
    return rest


def read_sealed(path: Path) -> dict | None:
    """What a file holds of which `sealed` was written; None where there is none. Raises BrokenArtefact for damage."""
    try:
        return unsealed(json.loads(path.read_text()), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, BrokenArtefact) else BrokenArtefact(f"{path} is damaged: {error}") from None


def json_sha256(value) -> str:
    """Hex digest of what JSON keeps of a value, however it is indented and ordered."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(paths: Sequence[Path]) -> dict[Path, str]:
    """Hex digests of files, read by several threads."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def altered_files(records: Mapping[Path, str]) -> list[Path]:
    """Those of the files (path -> SHA-256) that are missing or have another SHA-256; read by several threads."""
    paths, threads = list(records), min(4, os.cpu_count() or 1)
    hashes = in_threads(lambda path: sha256(path) if path.exists() else None, paths, threads, "verifying", "shard")
    return [path for path, digest in zip(paths, hashes, strict=True) if digest != records[path]]


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of named tensors, in the order of their names, wherever they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


LIBRARIES = {"timm", "diffusers"}  # entries of an encoder's provenance that are versions


def without_versions(provenance: dict) -> dict:
    """A provenance less the versions of the libraries that ran the networks: an upgrade makes no other encoder."""
    rest = {name: value for name, value in provenance.items() if name not in LIBRARIES}
    return {name: without_versions(value) if isinstance(value, dict) else value for name, value in rest.items()}
