"""Expand patterns to tar files, and index each file once; the indices are stored."""

import contextlib
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redi.data.storage.object_store import ObjectStore, RangedFile, open_store
from redi.data.storage.tar_index import scan
from redi.runtime.artefact import load_artefact, save_artefact
from redi.runtime.checksums import BrokenArtefact, json_sha256
from redi.runtime.progress import progress

INDEX_VERSION = 1
NUM_THREADS = 16  # for indexing shards, which mostly waits for the store
MAX_SHARDS = 1_000_000
# Entries of file systems that change with the content of a file, best first.
MARKS = ("ETag", "etag", "blob_id", "md5Hash", "mtime", "Last-Modified", "LastModified", "created")

Index = tuple[list[str], dict[str, Tensor]]  # keys; offsets, sizes, times and labels (N,)


@dataclass(frozen=True)
class Shard:
    """A tar file in a store; `mark` changes with its content (None: the store has no such entry)."""

    path: str
    size: int
    mark: str | None

    @property
    def name(self) -> str:
        """The file name, without folder and query string."""
        return self.path.split("?")[0].rpartition("/")[2]


def find_shards(shards: str | Sequence[str]) -> tuple[ObjectStore, list[Shard]]:
    """Return the store and the shards, in order, that match `WebDataset.shards`. Raises ValueError and Unreachable."""
    patterns, where = [shards] if isinstance(shards, str) else shards, f"WebDataset.shards = {shards!r}"
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f"{where} must be a path, a URL, or a list of them")
    urls = [url for pattern in patterns for url in expand_braces(os.path.expanduser(pattern), where)]
    try:
        opened = [open_store(url) for url in urls]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    store = opened[0][0]
    if any(other.files != store.files for other, _ in opened):
        raise ValueError(f"{where}: all shards must be in the same kind of store")

    def list_files(path: str) -> list[tuple[str, dict]]:
        if "*" not in path:
            return [(path, store.retry(f"{where}: {path}", lambda: store.files.info(path)))]
        matches = sorted(store.retry(path, lambda: store.files.glob(path, detail=True)).items())
        if not matches:
            raise ValueError(f"{where}: no shard matches {path}")
        return matches

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        infos = [info for group in pool.map(list_files, [path for _, path in opened]) for info in group]
    path, count = Counter(path for path, _ in infos).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where} names {path} more than once: list it once")
    return store, [_shard(path, info, where) for path, info in infos]


def _shard(path: str, info: dict, where: str) -> Shard:
    if info.get("type") == "directory":
        raise ValueError(f"{where}: {path} is a folder; to use the shards in it, write {path}/*.tar")
    if info.get("partial") is False or info.get("size") is None:
        problem = f"the server of {path} does not report file sizes or does not support range requests"
        raise ValueError(f"{where}: {problem}: copy the shards to a disk or to another store")
    marks = [f"{name} {info[name]}" for name in MARKS if info.get(name)]
    return Shard(path, info["size"], marks[0] if marks else None)


def expand_braces(pattern: str, where: str) -> Iterator[str]:
    """Expand {000..146} and {a,b} in a pattern to all combinations."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        yield pattern
        return
    first, last, choices = match.groups()
    if choices is None and not 0 <= int(last) - int(first) < MAX_SHARDS:
        raise ValueError(f"{where}: {match[0]} must count upwards, to at most {MAX_SHARDS:,} shards")
    for text in choices.split(",") if choices else (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)):
        yield from expand_braces(pattern[: match.start()] + text + pattern[match.end() :], where)


def index_shards(store: ObjectStore, shards: list[Shard], folder: Path, settings: dict) -> list[Index]:
    """Load the index of each shard from `folder`, or read it from the headers. Raises ValueError and Unreachable."""
    by_number: dict[int, Index] = {}
    numbers = list(range(len(shards)))
    random.Random(os.getpid()).shuffle(numbers)  # so that several processes share the scan
    pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="index")
    try:
        results = pool.map(lambda number: _index(store, shards[number], folder, settings), numbers)
        for number, index in zip(numbers, progress(results, total=len(shards), desc="indexing shards"), strict=True):
            by_number[number] = index
    finally:
        pool.shutdown(cancel_futures=True)
    indices = [by_number[number] for number in range(len(shards))]
    shard_of: dict[str, Shard] = {}
    for shard, (keys, _) in zip(shards, indices, strict=True):
        for key in keys:
            if (other := shard_of.setdefault(key, shard)) is not shard:
                advice = "keys must differ: check whether a shard is listed twice"
                raise ValueError(f"the key {key!r} is in {other.path} and in {shard.path}; {advice}")
    return indices


def _index(store: ObjectStore, shard: Shard, folder: Path, settings: dict) -> Index:
    path = folder / json_sha256([INDEX_VERSION, shard.path, shard.size, shard.mark, settings])[:24]
    if shard.mark is not None and path.exists():
        try:
            groups, _ = load_artefact(path)
            return json.loads((path / "keys.json").read_text()), groups["index"]
        except (BrokenArtefact, OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.closing(RangedFile(store, shard.path, shard.size)) as tar:
        keys, offsets, sizes, times, labels = zip(*scan(tar, shard.path, **settings), strict=True)
    numbers = {"offsets": offsets, "sizes": sizes, "labels": labels}
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in numbers.items()}
    tensors["times"] = torch.tensor(times, dtype=torch.float64)
    if shard.mark is not None:
        record = {"shard": shard.path, "bytes": shard.size, "mark": shard.mark, **settings}
        save_artefact(path, {"index": tensors}, record, extra={"keys.json": json.dumps(keys)}, shared=True)
    return list(keys), tensors
