"""The cache of encoded images: safetensors shards, memory-mapped, with a manifest (docs/cache.md)."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redi.core.artefact import BrokenArtefact, sha256
from redi.core.codec import JointCodec, without_versions
from redi.core.progress import progress
from redi.core.registry import identity
from redi.data.shards import NAMES, map_shard, remedy

MANIFEST = "manifest.json"
FORMAT = 2
MIRRORED = "mirrored."  # what a tensor's name begins with that was computed from the mirrored images
ENTRIES = {
    "format", "dataset", "dataset_fingerprint", "num_classes", "image_size", "codec", "cache_fingerprint", "code",
    "mirrored", "tensors", "rows", "shards", "versions", "sha256",
}  # fmt: skip


class Cache:
    """What `JointCodec.precompute` gave for every image of a data set, in its order, plus labels and names.

    Args:
        folder: as written by `redi.data.encoding.write_cache`.

    Attributes:
        labels: (rows,) int64.
        mirrored: whether it also holds what the mirrored images gave.

    Raises:
        BrokenArtefact: the manifest or a shard is missing, cut short, altered or of another format; a label that is
            no class. That every byte is as it was written is checked by `verify` alone.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
        self.num_classes = self.manifest["num_classes"]
        self.image_size = self.manifest["image_size"]
        self.cache_fingerprint = self.manifest["cache_fingerprint"]
        self.mirrored = self.manifest["mirrored"]
        self._tensors = self.manifest["tensors"]
        shards = self.manifest["shards"]
        self._shards = [map_shard(self.folder / shard["file"], shard, self._tensors) for shard in shards]
        self._starts = np.cumsum([0] + [shard["rows"] for shard in shards])
        self.labels = np.concatenate([shard["labels"] for shard in self._shards])
        outside = (self.labels < 0) | (self.labels >= self.num_classes)
        if outside.any():
            raise BrokenArtefact(
                f"{self.folder} holds labels outside [0, {self.num_classes}), first {self.labels[outside][0]} at row "
                f"{int(np.flatnonzero(outside)[0])}: {remedy(self.folder / MANIFEST)}"
            )

    def fingerprint(self) -> str:
        """Of the data set it was made from."""
        return self.manifest["dataset_fingerprint"]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def names(self) -> list[str]:
        """The images' names, in the order of the rows."""
        found = []
        for shard, record in zip(self._shards, self.manifest["shards"], strict=True):
            path = self.folder / record["file"]
            try:
                names = json.loads(shard[NAMES].tobytes())
            except ValueError:
                names = None
            if not isinstance(names, list) or len(names) != record["rows"]:
                raise BrokenArtefact(f"{path} does not name its {record['rows']} images: {remedy(path)}")
            found += names
        return found

    def batch(self, positions: Sequence[int], mirror: np.ndarray | None = None) -> dict[str, Tensor]:
        """Rows at these positions: {"image": ..., "<representation>": ..., "labels": (N,) int64}.

        Args:
            mirror: (N,) bool, which of them are taken from the mirrored images; default: none.

        Raises:
            IndexError: a position outside [0, len).
            ValueError: `mirror` for a cache without the mirrored images.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of a cache of {len(self)} rows")
        if mirror is not None and not self.mirrored and np.any(mirror):
            raise ValueError(f"{self.folder} holds no mirrored images: bind prepare.mirror = True and prepare again")
        flags = np.zeros(len(positions), bool) if mirror is None else np.asarray(mirror, bool)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        rows = (positions - self._starts[shards]).tolist()
        places = list(zip(shards.tolist(), rows, flags.tolist(), strict=True))
        batch = {"labels": torch.from_numpy(self.labels[positions])}
        for name, array in self._shards[0].items():
            if name.startswith(MIRRORED) or name in (NAMES, "labels"):
                continue
            # One copy per row: gathering shard by shard would copy everything twice.
            stored = np.empty((len(positions), *array.shape[1:]), array.dtype)
            other = MIRRORED + name if MIRRORED + name in self._shards[0] else name
            versions = [shard[name] for shard in self._shards], [shard[other] for shard in self._shards]
            for i, (shard, row, flipped) in enumerate(places):
                stored[i] = versions[flipped][shard][row]
            batch[name] = torch.from_numpy(stored)
        return batch

    def verify(self) -> None:
        """Reads every shard and compares its SHA-256. Raises BrokenArtefact naming those that were altered."""
        records = {self.folder / record["file"]: record["sha256"] for record in self.manifest["shards"]}
        if altered := altered_files(records):
            names = ", ".join(path.name for path in altered)
            raise BrokenArtefact(f"{names} were altered after they were written: {remedy(altered[0])}")

    def check(self, codec: JointCodec) -> None:
        """Raises ValueError, naming what differs, unless this codec would compute what is stored here.

        Library versions are not compared; `prepare` takes a cache of its own version only.
        """
        made = {"codec": without_versions(self.manifest["codec"]), "code": _unversioned(self.manifest["code"])}
        wanted = {"codec": without_versions(codec.cache_provenance()), "code": _unversioned(code_of(codec))}
        if found := list(_differences(made, wanted)):
            raise ValueError(
                f"the cache {self.folder} was made with another codec (cache -> codec at hand):\n  "
                + "\n  ".join(found)
                + "\nRun prepare with this codec, or use the codec that the cache was made with"
            )


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


def altered_files(records: dict[Path, str]) -> list[Path]:
    """Those of the files (path -> SHA-256) that are missing or have another SHA-256; read by several threads."""

    def is_altered(path: Path) -> bool:
        return not path.exists() or sha256(path) != records[path]

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        bar = progress(pool.map(is_altered, records), total=len(records), desc="verifying", unit="shard")
        return [path for path, altered in zip(records, bar, strict=True) if altered]


def manifest_sha256(manifest: dict) -> str:
    """The hash that a manifest carries of all its other entries."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BrokenArtefact(f"{path} cannot be read ({error}): {remedy(path)}") from None
    written = manifest.get("format", 1) if isinstance(manifest, dict) else None
    if written != FORMAT:
        raise BrokenArtefact(f"{path} has format {written}, this version of redi reads {FORMAT}: {remedy(path)}")
    if missing := ENTRIES - set(manifest):
        raise BrokenArtefact(f"{path} lacks {', '.join(sorted(missing))}: {remedy(path)}")
    if manifest["sha256"] != manifest_sha256(manifest):
        raise BrokenArtefact(f"{path} was altered after it was written: {remedy(path)}")
    return manifest


def _differences(old, new, where: str = "") -> Iterator[str]:
    """'path.to.entry: old -> new' for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != (new := json.loads(json.dumps(new))):  # tuples are lists in a manifest
        yield f"{where}: {_short(old)} -> {_short(new)}"


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
