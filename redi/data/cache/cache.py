"""The cache of encoded images: safetensors shards, memory-mapped, with a manifest (docs/cache.md)."""

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

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
LEARNED = "learned.safetensors"  # what the codec had learned from data, where it learns anything
FORMAT = 2
MIRRORED = "mirrored."  # what a tensor's name begins with that was computed from the mirrored images
ENTRIES = {
    "format", "dataset", "dataset_fingerprint", "num_classes", "image_size", "codec", "cache_fingerprint", "code",
    "mirrored", "tensors", "rows", "shards", "versions", "sha256",
}  # fmt: skip


class EncodedRows(ABC):
    """What `JointCodec.precompute` returned for every image of a data set, in its order, plus labels.

    `where` is the folder or URL, for messages; for `manifest` see docs/cache.md.
    """

    blocks: Blocks  # what the order 'shards' shuffles
    source: type | None = None  # the class of the data set, where that was at hand
    class_names: Sequence[str] | None = None  # of labels 0, 1, ..., likewise

    def __init__(self, where: str, manifest: dict):
        self.where, self.manifest = where, manifest
        self.num_classes, self.image_size = manifest["num_classes"], manifest["image_size"]
        self.cache_fingerprint, self.mirrored = manifest["cache_fingerprint"], manifest["mirrored"]
        self.starts = np.cumsum([0] + [shard["rows"] for shard in manifest["shards"]])

    @abstractmethod
    def _shard(self, number: int) -> Mapping[str, np.ndarray]:
        """The tensors of a shard, see `map_shard`."""

    @abstractmethod
    def expect(self, windows: Sequence[np.ndarray]) -> None:
        """Says which `blocks` will be read from now on, window by window; see `redi.data.loader`."""

    def note(self, dataset) -> "EncodedRows":
        """Keep what no manifest holds of the data set at hand."""
        self.source, self.class_names = type(dataset), dataset.class_names
        return self

    def fingerprint(self) -> str:
        """Of the data set it was made from."""
        return self.manifest["dataset_fingerprint"]

    def content_fingerprint(self) -> str | None:
        """See `Dataset.content_fingerprint`; None: made by a version that kept none."""
        return self.manifest.get("dataset_content_fingerprint")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, positions: Sequence[int], mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """Rows at these positions: {"image": ..., "<representation>": ..., "labels": (N,) int64}.

        `mirror` (N,) bool says which of them to take from the mirrored images.

        Raises IndexError for a position outside [0, len), ValueError for `mirror` without mirrored images.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of a cache of {len(self)} rows")
        if mirror is not None and not self.mirrored and np.any(mirror):
            raise ValueError(f"{self.where} holds no mirrored images: set prepare.mirror = True and prepare again")
        flags = np.zeros(len(positions), bool) if mirror is None else np.asarray(mirror, bool)
        shards = np.searchsorted(self.starts, positions, side="right") - 1
        rows = positions - self.starts[shards]
        stored = self.manifest["tensors"]
        names = [name for name in stored if not name.startswith(MIRRORED)]
        mirrored = [MIRRORED + name if MIRRORED + name in stored else name for name in names]
        arrays = [np.empty((len(rows), *stored[name]["shape"]), DTYPES[stored[name]["dtype"]]) for name in names]
        # Shard by shard, since only one may be at hand; one copy per row, since gathering a shard's would copy twice.
        order = np.argsort(shards, kind="stable")
        places = zip(order.tolist(), shards[order].tolist(), rows[order].tolist(), flags[order].tolist(), strict=True)
        current = -1
        for i, shard, row, flipped in places:
            if shard != current:
                found, current = self._shard(shard), shard
                versions = [list(zip(arrays, map(found.get, of), strict=True)) for of in (names, mirrored)]
            for array, source in versions[flipped]:
                array[i] = source[row]
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    def check(self, codec: JointCodec) -> None:
        """Raises ValueError, naming what differs, unless this codec would compute what is stored here, by any version
        of the libraries.
        """
        stored = {"codec": without_versions(self.manifest["codec"]), "code": _unversioned(self.manifest["code"])}
        wanted = {"codec": without_versions(codec.cache_provenance()), "code": _unversioned(code_of(codec))}
        if differences := "\n  ".join(_differences(stored, wanted)):
            raise ValueError(
                f"the cache {self.where} was made with another codec (cache -> codec at hand):\n  {differences}\n"
                "Run prepare with this codec, or use the codec that the cache was made with"
            )


class Cache(EncodedRows):
    """A cache on this machine, memory-mapped.

    Args:
        folder: as written by `redi.data.cache.write.write_cache`.

    Raises BrokenArtefact: the manifest or a shard is missing, cut short or of another format, or a label is not a
    class. `verify` (and `prepare`) compares every byte. A shard that is cut short while it is mapped ends the process
    with SIGBUS (docs/reliability.md).
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
        """The images' names, in the order of the rows."""
        all_names = []
        for shard, record in zip(self.shards, self.manifest["shards"], strict=True):
            path = self.folder / record["file"]
            try:
                names = json.loads(shard[NAMES].tobytes())
            except ValueError:
                names = None
            if not isinstance(names, list) or len(names) != record["rows"]:
                raise BrokenArtefact(f"{path} does not name its {record['rows']} images: {remedy(path)}")
            all_names += names
        return all_names

    def verify(self) -> None:
        """Reads every shard and compares its SHA-256. Raises BrokenArtefact naming those that were altered."""
        records = {self.folder / record["file"]: record["sha256"] for record in self.manifest["shards"]}
        if altered := altered_files(records):
            names = ", ".join(path.name for path in altered)
            raise BrokenArtefact(f"{names} were altered after they were written: {remedy(altered[0])}")


def code_of(codec: JointCodec) -> dict[str, dict]:
    """Which code the parts of a codec are, by their place in it; see `redi.core.registry.identity`."""
    parts = {"autoencoder": codec.autoencoder}
    for name, representation in codec.representations.items():
        parts |= {f"{name}.encoder": representation.encoder, f"{name}.reducer": representation.reducer}
    if codec.alignment is not None:
        parts["alignment"] = codec.alignment
    return {place: identity(part) for place, part in parts.items()}


def _unversioned(code: dict[str, dict]) -> dict[str, dict]:
    return {place: {key: value for key, value in part.items() if key != "redi"} for place, part in code.items()}


def manifest_sha256(manifest: dict) -> str:
    """The hash that a manifest carries of all its other entries."""
    return json_sha256({key: value for key, value in manifest.items() if key != "sha256"})


def read_manifest(path: Path) -> dict:
    """The manifest of a cache on this machine. Raises BrokenArtefact."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BrokenArtefact(f"{path} cannot be read ({error}): {remedy(path)}") from None
    return parse_manifest(text, str(path), remedy(path))


def parse_manifest(text: bytes, where: str, remedy: str) -> dict:
    """A manifest from its text. Raises BrokenArtefact with the place and the remedy where it is damaged."""
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenArtefact(f"{where} cannot be read ({error}): {remedy}") from None
    written = manifest.get("format", 1) if isinstance(manifest, dict) else None
    if written != FORMAT:
        raise BrokenArtefact(f"{where} has format {written}, this version of redi reads {FORMAT}: {remedy}")
    if missing := ENTRIES - set(manifest):
        raise BrokenArtefact(f"{where} lacks {', '.join(sorted(missing))}: {remedy}")
    if manifest["sha256"] != manifest_sha256(manifest):
        raise BrokenArtefact(f"{where} was altered after it was written: {remedy}")
    if not describes_shards(manifest):
        raise BrokenArtefact(f"{where} makes no sense, as if somebody had made it up: {remedy}")
    return manifest


def _differences(old, new, where: str = "") -> Iterator[str]:
    """'path.to.entry: old -> new' for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != (new := json.loads(json.dumps(new))):  # tuples are lists in a manifest
        texts = (json.dumps(value) for value in (old, new))
        yield f"{where}: {' -> '.join(text if len(text) <= 60 else text[:57] + '...' for text in texts)}"
