"""The cache of encoded images: safetensors shards, memory-mapped, with a manifest (docs/cache.md)."""

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from redi.core.registry import identity
from redi.data.cache.shards import DTYPES, NAMES, check_labels, describes_shards, map_shard, read_ahead, remedy
from redi.data.order import Blocks
from redi.models.codec import JointCodec
from redi.runtime.checksums import BrokenArtefact, altered_files, json_sha256, without_versions
from redi.runtime.paths import local_path

MANIFEST = "manifest.json"
LEARNED = "learned.safetensors"  # the fitted state of the codec, if it has any
FORMAT = 2
MIRRORED = "mirrored."  # prefix of the names of tensors that were computed from the mirrored images
ENTRIES = {
    "format", "dataset", "dataset_fingerprint", "num_classes", "image_size", "codec", "cache_fingerprint", "code",
    "mirrored", "tensors", "rows", "shards", "versions", "sha256",
}  # fmt: skip


class EncodedRows(ABC):
    """The outputs of `JointCodec.precompute` for the images of a data set, in order; `manifest`: see docs/cache.md."""

    blocks: Blocks  # the blocks that the order 'shards' shuffles
    source: type | None = None  # the class of the data set, if it is available
    class_names: Sequence[str] | None = None  # the names of labels 0, 1, ..., if available

    def __init__(self, where: str, manifest: dict):
        self.where, self.manifest = where, manifest
        self.num_classes, self.image_size = manifest["num_classes"], manifest["image_size"]
        self.cache_fingerprint, self.mirrored = manifest["cache_fingerprint"], manifest["mirrored"]
        self.starts = np.cumsum([0] + [shard["rows"] for shard in manifest["shards"]])

    @abstractmethod
    def _shard(self, number: int) -> Mapping[str, np.ndarray]:
        """Return the tensors of a shard, see `map_shard`."""

    @abstractmethod
    def expect(self, windows: Sequence[np.ndarray]) -> None:
        """Announce which `blocks` will be read next, window by window; see `redi.data.loader`."""

    def note(self, dataset) -> Self:
        """Store properties of the data set that are not in the manifest; return the cache itself."""
        self.source, self.class_names = type(dataset), dataset.class_names
        return self

    def fingerprint(self) -> str:
        """Return the fingerprint of the data set from which the cache was computed."""
        return self.manifest["dataset_fingerprint"]

    def content_fingerprint(self) -> str | None:
        """Return `Dataset.content_fingerprint`; None if an earlier version wrote the cache without it."""
        return self.manifest.get("dataset_content_fingerprint")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(
        self, positions: Sequence[int], mirror: np.ndarray | None = None, without: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return the rows at `positions`: {"image": ..., "<representation>": ..., "labels": (N,) int64}.

        The tensors in `without` are not read. Rows where `mirror` (N,) is true come from the mirrored images. Raises
        IndexError for positions outside [0, len), ValueError for `mirror` without mirrored images.
        """
        index = np.asarray(positions, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"positions {index.min()} to {index.max()} are outside a cache of {len(self)} rows")
        if mirror is not None and not self.mirrored and np.any(mirror):
            raise ValueError(f"{self.where} has no mirrored images: set prepare.mirror = True and rerun prepare")
        flags = np.zeros(len(index), bool) if mirror is None else np.asarray(mirror, bool)
        shards = np.searchsorted(self.starts, index, side="right") - 1
        rows = index - self.starts[shards]
        stored = self.manifest["tensors"]
        names = [name for name in stored if not name.startswith(MIRRORED) and name not in without]
        mirrored = [MIRRORED + name if MIRRORED + name in stored else name for name in names]
        arrays = [np.empty((len(rows), *stored[name]["shape"]), DTYPES[stored[name]["dtype"]]) for name in names]
        # Shard by shard, because only one may be in memory. Row by row, because indexing a shard would copy twice.
        order = np.argsort(shards, kind="stable")
        columns = (order.tolist(), shards[order].tolist(), rows[order].tolist(), flags[order].tolist())
        current = -1
        for i, shard, row, flipped in zip(*columns, strict=True):
            if shard != current:
                tensors, current = self._shard(shard), shard
                versions = [[*zip(arrays, [tensors[key] for key in keys], strict=True)] for keys in (names, mirrored)]
            for array, source in versions[flipped]:
                array[i] = source[row]
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    def check(self, codec: JointCodec) -> None:
        """Raise ValueError, listing the differences, if another codec computed the cache; ignore library versions."""
        stored = {"codec": without_versions(self.manifest["codec"]), "code": _unversioned(self.manifest["code"])}
        expected = {"codec": without_versions(codec.cache_provenance()), "code": _unversioned(code_of(codec))}
        if differences := "\n  ".join(_differences(stored, expected)):
            raise ValueError(
                f"the cache {self.where} was computed with another codec (cache -> this codec):\n  {differences}\n"
                "Run prepare with this codec, or use the codec of the cache"
            )


class Cache(EncodedRows):
    """A memory-mapped cache, written by `write_cache`, on a local or network file system.

    Raises BrokenArtefact if the manifest or a shard is missing, truncated or of another format, or a label is outside
    [0, num_classes). Only `verify` (and `prepare`) compares checksums. Truncating a shard while it is mapped ends the
    process with SIGBUS (docs/reliability.md).
    """

    def __init__(self, folder: Path):
        self.folder = local_path(folder)
        super().__init__(str(folder), read_manifest(self.folder / MANIFEST))
        shards, tensors = self.manifest["shards"], self.manifest["tensors"]
        self.shards = [map_shard(self.folder / shard["file"], shard, tensors) for shard in shards]
        self.labels = np.concatenate([shard["labels"] for shard in self.shards])  # (rows,) int64
        check_labels(self.labels, self.num_classes, self.where, remedy(self.folder / MANIFEST))
        self.blocks = Blocks.cut(self.starts)

    def _shard(self, number: int) -> Mapping[str, np.ndarray]:
        return self.shards[number]

    def expect(self, windows: Sequence[np.ndarray]) -> None:
        for block in itertools.chain(*windows):
            bounds = self.blocks.starts[block : block + 2]
            number = int(np.searchsorted(self.starts, bounds[0], side="right")) - 1
            rows = slice(*(bounds - self.starts[number]))
            for name in self.manifest["tensors"]:
                read_ahead(self.shards[number][name][rows])

    @cached_property
    def names(self) -> list[str]:
        """The names of the images, in the order of the rows."""
        all_names = []
        for shard, record in zip(self.shards, self.manifest["shards"], strict=True):
            path = self.folder / record["file"]
            try:
                names = json.loads(shard[NAMES].tobytes())
            except ValueError:
                names = None
            if not isinstance(names, list) or len(names) != record["rows"]:
                raise BrokenArtefact(f"{path} does not have the names of its {record['rows']} images: {remedy(path)}")
            all_names += names
        return all_names

    def verify(self) -> None:
        """Read every shard and compare its SHA-256. Raises BrokenArtefact, naming the altered shards."""
        records = {self.folder / record["file"]: record["sha256"] for record in self.manifest["shards"]}
        if altered := altered_files(records):
            names = ", ".join(path.name for path in altered)
            raise BrokenArtefact(f"{names} were altered after they were written: {remedy(altered[0])}")


def code_of(codec: JointCodec) -> dict[str, dict]:
    """Return the `redi.core.registry.identity` of every part of a codec, by its name in the codec."""
    parts: dict[str, Any] = {"autoencoder": codec.autoencoder.stores}
    for name, representation in codec.representations.items():
        parts |= {f"{name}.encoder": representation.encoder, f"{name}.reducer": representation.reducer}
    parts |= codec.alignments
    return {name: identity(part) for name, part in parts.items()}


def _unversioned(code: dict[str, dict]) -> dict[str, dict]:
    return {name: {key: value for key, value in part.items() if key != "redi"} for name, part in code.items()}


def manifest_sha256(manifest: dict) -> str:
    """Return the hash of all other entries, which a manifest stores as "sha256"."""
    return json_sha256({key: value for key, value in manifest.items() if key != "sha256"})


def read_manifest(path: Path) -> dict:
    """Read the manifest of a cache on this machine. Raises BrokenArtefact."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BrokenArtefact(f"{path} cannot be read ({error}): {remedy(path)}") from None
    return parse_manifest(text, str(path), remedy(path))


def parse_manifest(text: bytes, where: str, remedy: str) -> dict:
    """Parse and check a manifest. Raises BrokenArtefact with `where` and `remedy` if it is damaged."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenArtefact(f"{where} cannot be read ({error}): {remedy}") from None
    version = manifest.get("format", 1) if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise BrokenArtefact(f"{where} has format {version}, but this version of redi reads {FORMAT}: {remedy}")
    if missing := ENTRIES - set(manifest):
        raise BrokenArtefact(f"{where} lacks {', '.join(sorted(missing))}: {remedy}")
    if manifest["sha256"] != manifest_sha256(manifest):
        raise BrokenArtefact(f"{where} was altered after it was written: {remedy}")
    if not describes_shards(manifest):
        raise BrokenArtefact(f"{where} has invalid entries and was not written by redi: {remedy}")
    return manifest


def _differences(old, new, where: str = "") -> Iterator[str]:
    """Yield 'path.to.entry: old -> new' for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != (new := json.loads(json.dumps(new))):  # a manifest stores tuples as lists
        texts = (json.dumps(value) for value in (old, new))
        yield f"{where}: {' -> '.join(text if len(text) <= 60 else text[:57] + '...' for text in texts)}"
