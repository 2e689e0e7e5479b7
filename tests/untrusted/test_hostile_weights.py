"""Hostile weights, checkpoints and cache shards raise an error that states the reason."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import Code, entry, repacked, safetensors, torch_file, write

from redi.data.cache.shards import map_shard
from redi.models.published.file import read_published
from redi.models.reducers.published import read_published_pca
from redi.runtime.artefact import load_artefact
from redi.runtime.checksums import sha256

DEEP = b"[" * 100_000


def published(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda folder: read_published(make(folder))


def header(raw: bytes) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "x.safetensors", raw)


def code(name: str, **options) -> Callable[[Path], Path]:
    return lambda folder: torch_file(folder / name, {"w": Code(folder / "ran")}, **options)


def artefact(files: Callable[[Path], dict], record: bytes | None = None) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        listed = {"files": files(folder)}
        (folder / "record.json").write_bytes(json.dumps(listed).encode() if record is None else record)
        load_artefact(folder)

    return read


def listed(folder: Path, raw: bytes) -> dict:
    """A file with a correct hash, as if an attacker had changed both."""
    path = write(folder / "model.safetensors", raw)
    return {"model.safetensors": {"bytes": len(raw), "sha256": sha256(path)}}


def cached(raw: bytes) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        record = {"file": "x.safetensors", "rows": 2, "bytes": len(raw), "sha256": ""}
        map_shard(write(folder / "x.safetensors", raw), record, {"image": {"dtype": "F32", "shape": [1]}})

    return read


STRIDED = torch.as_strided(torch.ones(1), (10**6, 10**6), (0, 0))
HUGE = safetensors({"w": entry([2**40], 0, 2**42)}, bytes(64))
OVERLAP = safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24))
WEIGHTS = {
    "a pickle with code": (published(code("x.pt")), "x.pt was refused: besides tensors it contains"),
    "an old pickle with code": (
        published(code("x.bin", _use_new_zipfile_serialization=False)),
        "besides tensors it contains posix.system",
    ),
    "statistics with code": (lambda f: read_published_pca(code("x.pth")(f)), "x.pth was refused: besides tensors"),
    "a bare pickle with code": (
        published(lambda f: write(f / "x.pth", pickle.dumps(Code(f / "ran"), protocol=2))),
        "besides tensors it contains posix.system",
    ),
    "an archive that is a bomb": (
        published(lambda f: repacked(torch_file(f / "x.pt", torch.zeros(2**20)), zipfile.ZIP_DEFLATED)),
        "has entries of .* bytes, more than the archive",
    ),
    "a tensor of a million squared": (
        published(lambda f: torch_file(f / "x.pt", {"w": STRIDED})),
        r"a tensor of shape \(1000000, 1000000\), which is la",
    ),
    "a sparse tensor": (
        published(lambda f: torch_file(f / "x.pt", {"w": torch.ones(2, 2).to_sparse()})),
        "a tensor that is torch.sparse",
    ),
    "a file that ends early": (
        published(lambda f: write(f / "x.pt", torch_file(f / "y.pt", {"w": torch.ones(99)}).read_bytes()[:-99])),
        "is truncated or not a file of tensors",
    ),
    "a header longer than the file": (
        published(header(safetensors({}, length=2**62))),
        "is truncated or not a file of tensors",
    ),
    "a tensor beyond the file": (published(header(HUGE)), "is truncated or not a file of tensors"),
    "tensors that overlap": (published(header(OVERLAP)), "is truncated or not a file of tensors"),
    "a header that is nested deeply": (published(header(safetensors(DEEP))), "is truncated or not a file of tensors"),
    "a header that is no text": (published(header(safetensors(b"\xff" * 64))), "is truncated or not a file of tensors"),
    "a checkpoint whose tensor lies": (artefact(lambda f: listed(f, HUGE)), "is not a safetensors file"),
    "a checkpoint that is a pickle": (
        artefact(lambda f: listed(f, pickle.dumps(Code(f / "ran")))),
        "is not a safetensors file",
    ),
    "a checkpoint of a file elsewhere": (
        artefact(lambda f: {"../x.safetensors": {"bytes": 1, "sha256": ""}}),
        "'../x.safetensors'",
    ),
    "a checkpoint of an absolute file": (
        artefact(lambda f: {"/etc/passwd": {"bytes": 1, "sha256": ""}}),
        "'/etc/passwd'",
    ),
    "a record that is nested deeply": (artefact(lambda f: {}, DEEP), "is not JSON"),
    "a record that lists no files": (artefact(lambda f: {}, b'{"files": []}'), "has no list of files"),
    "a shard beyond the file": (cached(HUGE), "is damaged: Error while deserializing header: "),
    "a shard with a header too long": (cached(safetensors({}, length=2**63)), "is damaged: .*header too large"),
    "a shard nested deeply": (cached(safetensors(DEEP)), "is damaged"),
    "a shard of infinite rows": (
        cached(safetensors(b'{"w": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 0]}}')),
        "is damaged",
    ),
    "a shard of a strange type": (
        cached(safetensors(b'{"w": {"dtype": [], "shape": [0], "data_offsets": [0, 0]}}')),
        "is damaged",
    ),
    "a shard of odd bytes": (cached(safetensors({"image": entry([1], 0, 3)}, bytes(3))), "is damaged: .*invalid shape"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_it_is_refused_and_the_message_says_why(name, refused):
    refused(*WEIGHTS[name])


def test_the_code_in_these_files_would_run(tmp_path):
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
