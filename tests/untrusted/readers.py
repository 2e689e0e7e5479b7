"""Every reader of foreign files, with real files to damage."""

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hostile_files import archive, npz, picture, tar
from mutations import altered, damaged
from safetensors.torch import save
from sklearn.decomposition import PCA

from redi.core import config
from redi.core.configurables import import_all
from redi.data.cache.cache import Cache, manifest_sha256
from redi.data.cache.shards import map_shard, shard_tensors, with_names
from redi.data.datasets import AdmBatch, ImageFolder, WebDataset
from redi.data.datasets.image_folder import labels_of_index
from redi.data.preprocessing import Preprocessing, open_image
from redi.evaluation.samples.stored import Samples
from redi.evaluation.stored_statistics import StoredStatistics
from redi.models.published.file import read_published
from redi.models.reducers.published import read_published_pca
from redi.runtime.artefact import load_artefact
from redi.runtime.log import read_log

import_all()  # what configurations may refer to

Damage = Callable[[bytes, Sequence[bytes], random.Random], bytes]


@dataclass
class Reader:
    """A reader of files.

    Attributes:
        make: gives real files, and may use a folder for it.
        read: reads what lies at a path.
        weight: how many inputs it gets beside the others.
        damage: what is done to a file.
    """

    make: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path], object]
    weight: int = 1
    damage: Damage = damaged
    suffix: str = ".bin"


def json_damaged(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Damage the value or the bytes, each with probability 1/2."""
    if chance.random() < 0.5:
        return damaged(data, others, chance)
    return json.dumps(altered(json.loads(data), chance)).encode()


def sealed_manifest(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A manifest that was altered together with its hash."""
    value = altered(json.loads(data), chance)
    if isinstance(value, dict) and chance.random() < 0.9:
        value["sha256"] = manifest_sha256(value)
    return json.dumps(value).encode()


def tensors() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=chance), "b": torch.arange(6), "c": torch.ones(2).half()}


def pca_statistics(folder: Path) -> list[bytes]:
    """Statistics in the format of the paper's code."""
    rows = np.random.default_rng(0).normal(size=(20, 3))
    return torch_files({"pca_model": PCA().fit(rows), "mean": np.zeros(3), "std": np.ones(3)}, True, False)


def torch_files(value: object, *new: bool) -> list[bytes]:
    """Save in PyTorch's zip format, or in the older format (new = False)."""
    found = [io.BytesIO() for _ in new]
    for buffer, zipped in zip(found, new, strict=True):
        torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return [buffer.getvalue() for buffer in found]


def images(folder: Path) -> list[bytes]:
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "PPM", "TGA", "QOI", "AVIF")
    return [picture(24, kind) for kind in kinds] + [picture(24, "JPEG", progressive=True)]


def zips(folder: Path) -> list[bytes]:
    members = [("a/0.png", picture(4)), ("b/1.jpg", picture(8, "JPEG"))]
    index = ("dataset.json", b'{"labels": [["a/0.png", 0], ["b/1.jpg", 1]]}')
    made = [
        archive(folder / "a.zip", *members),
        archive(folder / "b.zip", *members, index, method=zipfile.ZIP_DEFLATED),
    ]
    return [path.read_bytes() for path in made]


def tars(folder: Path) -> list[bytes]:
    long = "long/" * 30 + "c"
    members = [("a.png", picture(4)), ("a.cls", b"3"), ("b.jpg", picture(8, "JPEG")), ("b.json", b'{"label": 2}')]
    members += [(f"{long}.png", picture(4)), (f"{long}.cls", b"0")]
    return [tar(folder / "a.tar", *members).read_bytes()]


def batches(folder: Path) -> list[bytes]:
    values = {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.arange(2)}
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return [npz(folder / f"{method}.npz", method, **values).read_bytes() for method in methods]


def statistics(folder: Path) -> list[bytes]:
    values = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    return [npz(folder / f"{m}.npz", m, **values).read_bytes() for m in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


def record(folder: Path) -> list[bytes]:
    raw = save(tensors())
    (folder / "model.safetensors").write_bytes(raw)
    entry = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    facts = {"format": "redi checkpoint 2", "step": 3, "files": {"model.safetensors": entry}}
    part = {"file": "model.safetensors", "start": 0, "stop": 2, "labels_sha256": ""}
    facts |= {"parts": [part], "seeds": [0], "num_images": 2}
    return [json.dumps(facts | {"kept": ["x"], "samples_sha256": ""}).encode()]


def read_record_at(path: Path) -> None:
    (path.parent / "record.json").write_bytes(path.read_bytes())
    load_artefact(path.parent)
    Samples(path.parent)


def read_sealed_tensors(path: Path) -> None:
    """Damage that the hash does not reveal, because it is computed from the damaged file."""
    folder = path.parent / "sealed"
    folder.mkdir(exist_ok=True)
    raw = path.read_bytes()
    (folder / "model.safetensors").write_bytes(raw)
    entry = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "record.json").write_text(json.dumps({"files": {"model.safetensors": entry}}))
    load_artefact(folder)


ROWS = {"image": torch.zeros(2, 3), "labels": torch.arange(2)}


def shards(folder: Path) -> list[bytes]:
    (folder / "shard.safetensors").write_bytes(content := save(with_names(ROWS, ["x", "y"])))
    return [content]


def read_shard(path: Path) -> None:
    record = {"file": path.name, "rows": 2, "bytes": path.stat().st_size, "sha256": ""}
    map_shard(path, record, shard_tensors(ROWS))


def manifest(folder: Path) -> list[bytes]:
    made = {"file": "shard.safetensors", "rows": 2, "bytes": len(shards(folder)[0]), "sha256": ""}
    facts = {"format": 2, "dataset": {}, "dataset_fingerprint": "", "num_classes": 2, "image_size": 8, "codec": {}}
    facts |= {"cache_fingerprint": "", "code": {}, "mirrored": False, "tensors": shard_tensors(ROWS), "rows": 2}
    facts |= {"shards": [made], "versions": {}}
    return [json.dumps(facts | {"sha256": manifest_sha256(facts)}).encode()]


def read_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_bytes(path.read_bytes())
    cache = Cache(path.parent)
    cache.batch(range(len(cache)))


def configurations(folder: Path) -> list[bytes]:
    with config.isolated():
        config.parse(["digits.gin"])
        saved = config.full_text().encode()
    return [saved, b"import redi.data.audit\nA = [1, {'x': (2, -3.0)}, @reducers.PCA()]\nPCA:\n  rank = 4\n"]


def read_weights(path: Path) -> None:
    read_published(path, names=())


def read_image(path: Path) -> None:
    image = open_image(path.read_bytes())
    preprocessing = Preprocessing(image_size=16)
    preprocessing.check(image)
    image.load()
    preprocessing(image)


def read_folder(path: Path) -> None:
    data = ImageFolder(path=str(path))
    for index in range(len(data)):
        data.load(index)


def read_shards(path: Path) -> None:
    data = WebDataset(shards=str(path), cache_dir=str(path.parent / "indices"))
    for index in range(len(data)):
        data.load(index)


def labels(_: Path) -> list[bytes]:
    return [b'{"labels": [["a.png", 0], ["b.png", 1]]}', b'{"labels": null}']


def lines(folder: Path) -> list[bytes]:
    return [b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25, "skipped_steps": 1}\n']


def anything_of_pillow(path: Path) -> None:
    """Errors that `EncodedImages._decode` turns into UnreadableImage; Pillow raises many kinds."""
    try:
        read_image(path)
    except Exception as error:
        raise ValueError(type(error).__name__) from error


READERS = {
    "PCA statistics": Reader(pca_statistics, read_published_pca, 7, suffix=".pth"),
    "weights, .pt": Reader(lambda _: torch_files(tensors(), True, False), read_weights, 2, suffix=".pt"),
    "weights, .safetensors": Reader(lambda _: [save(tensors())], read_weights, 2, suffix=".safetensors"),
    "published checkpoints": Reader(
        lambda _: torch_files({"ema": tensors(), "args": {"lr": 1e-4}, "steps": 7}, True, False),
        read_published,
        2,
        suffix=".pt",
    ),
    "records of checkpoints and samples": Reader(record, read_record_at, 2, json_damaged),
    "tensors of checkpoints": Reader(lambda _: [save(tensors())], read_sealed_tensors, 2),
    "shards of a cache": Reader(shards, read_shard, 3),
    "manifests of a cache": Reader(manifest, read_manifest, 2, sealed_manifest),
    "images": Reader(images, anything_of_pillow, 5),
    "zips of images": Reader(zips, read_folder, 3, suffix=".zip"),
    "labels": Reader(
        labels, lambda path: labels_of_index(lambda: path.open("rb"), ["a.png", "b.png"], "x"), 3, json_damaged
    ),
    "tar shards": Reader(tars, read_shards, 2, suffix=".tar"),
    "ADM batches": Reader(batches, lambda path: AdmBatch(path=str(path)).load(0), 2, suffix=".npz"),
    "statistics": Reader(statistics, lambda path: StoredStatistics(path=path, network="clean"), 2, suffix=".npz"),
    "configurations": Reader(configurations, lambda path: config.parse([], saved=[path]), 1, suffix=".gin"),
    "logs": Reader(lines, lambda path: (path.replace(path.with_name("log.jsonl")), read_log(path.parent)), 2),
}  # fmt: skip
