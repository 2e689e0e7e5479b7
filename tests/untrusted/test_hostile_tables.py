"""Hostile tar shards, Hugging Face folders and .npz files raise an error that states the reason."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_files import Code, archive, npy, npz, picture, special, tar, write

from redi.data.datasets import AdmBatch, HuggingFace, WebDataset
from redi.evaluation.stored_statistics import StoredStatistics

PIXEL = picture()
DEEP = b"[" * 100_000


def shard_with(*members) -> Callable[[Path], None]:
    return lambda folder: WebDataset(shards=str(tar(folder / "x.tar", *members)), cache_dir=str(folder))


def row(path: str) -> Callable[[Path], None]:
    """A data set of the Hugging Face library whose row refers to a file."""

    def read(folder: Path) -> None:
        import datasets

        (folder / "secret.png").write_bytes(PIXEL)
        # Written as plain columns, since the package would store the file's content; then declared to be an image.
        columns = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        rows = {"image": [{"bytes": None, "path": path}]}
        datasets.Dataset.from_dict(rows, features=datasets.Features(image=columns)).save_to_disk(folder / "table")
        info = json.loads((folder / "table" / "dataset_info.json").read_text())
        info["features"] = {"image": {"_type": "Image"}}
        (folder / "table" / "dataset_info.json").write_text(json.dumps(info))
        HuggingFace(path=str(folder / "table"), label_column=None).load(0)

    return read


def adm(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda folder: AdmBatch(path=str(make(folder))).load(0)


def statistics(make: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda folder: StoredStatistics(path=make(folder), network="clean")


def objects(folder: Path) -> np.ndarray:
    return np.array([Code(folder / "ran")], dtype=object)


TABLES = {
    "a tar with names that lead upwards": (shard_with(("../../x.png", PIXEL)), "'../../x.png', which leads out of"),
    "a tar with an absolute name": (shard_with(("/etc/x.png", PIXEL)), "'/etc/x.png', which leads out of the shard"),
    "a tar with a link": (
        shard_with(special("x.png", tarfile.SYMTYPE, "/etc/passwd")),
        "x.png is not a regular file; links",
    ),
    "a tar with a hard link": (shard_with(special("x.png", tarfile.LNKTYPE, "/etc/passwd")), "x.png is not a regular"),
    "a tar with a device": (shard_with(special("x.png", tarfile.CHRTYPE)), "x.png is not a regular"),
    "a tar with a pipe": (shard_with(special("x.png", tarfile.FIFOTYPE)), "x.png is not a regular"),
    "a tar with an absurd label": (shard_with(("x.png", PIXEL), ("x.cls", b"9" * 18)), "the label 9+ means"),
    "a tar with a label of a megabyte": (shard_with(("x.png", PIXEL), ("x.cls", b"1" * 2**20)), "contains b'1+'; a"),
    "a tar with deep JSON": (shard_with(("x.png", PIXEL), ("x.json", DEEP)), "x.json is not JSON"),
    "a row that names a file elsewhere": (row("../secret.png"), "refers to a file outside the data set, .*secret.png"),
    "a row that names a device": (row("/dev/zero"), "refers to a file outside the data set, /dev/zero"),
    "a batch of Python objects": (
        adm(lambda f: npz(f / "x.npz", arr_0=objects(f))),
        "has Python objects, whose pick",
    ),
    "a batch that claims more": (
        adm(lambda f: npz(f / "x.npz", arr_0=npy("(1000000000, 256, 256, 3)"))),
        "truncated or damaged",
    ),
    "a batch of negative shape": (
        adm(lambda f: npz(f / "x.npz", arr_0=npy("(-1, -2, 2, 3)", bytes(12)))),
        "its shape is",
    ),
    "a batch of huge images": (
        adm(lambda f: npz(f / "x.npz", zipfile.ZIP_DEFLATED, arr_0=npy("(1, 10000, 10000, 3)"))),
        "would unpack from .* to 300,000,000 bytes",
    ),
    "a batch of deep brackets": (adm(lambda f: npz(f / "x.npz", arr_0=npy("(" * 9_000))), "arr_0.npy cannot be read"),
    "a batch of many signs": (
        adm(lambda f: npz(f / "x.npz", arr_0=npy("-" * 9_000 + "1"))),
        "arr_0.npy cannot be read",
    ),
    "statistics of Python objects": (
        statistics(lambda f: npz(f / "x.npz", mu=objects(f), sigma=objects(f))),
        "has Python objects",
    ),
    "statistics that claim more": (
        statistics(lambda f: npz(f / "x.npz", mu=npy("(9000000,)"), sigma=npy("(9000000, 9000000)"))),
        "is truncated or damaged: .* instead of 9,000,000",
    ),
    "statistics under two names": (
        statistics(lambda f: archive(f / "x.npz", ("mu", b"1"), ("mu.npy", npy("(1,)", b"\0")))),
        "must be arrays",
    ),
    "statistics in no archive": (statistics(lambda f: write(f / "x.npz", b"PK\3\4")), "is not an intact .npz file"),
}


@pytest.mark.parametrize("name", TABLES)
def test_it_is_refused_and_the_message_says_why(name, refused):
    refused(*TABLES[name])
