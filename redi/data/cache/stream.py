"""Stream a cache from object storage, shard by shard ahead of the loader, for data sets larger than the disk."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from redi.data.cache.cache import LEARNED, MANIFEST, EncodedRows, parse_manifest
from redi.data.cache.shards import check_labels, map_shard
from redi.data.order import Blocks
from redi.data.storage.object_store import Unreachable, open_store, remove_stale
from redi.runtime.checksums import BrokenArtefact

NUM_THREADS = 4  # shards fetched in parallel
WINDOW = 131_072  # rows shuffled together; 3 GB of SD latents and eight reduced channels
SAMPLE_BYTES = 2**30  # the limit of data fetched for statistics before training


class CacheStream(EncodedRows):
    """A cache at a URL; a bounded part of it is on the local disk.

    It is read in the order 'shards' with whole shards as blocks. Each shard is fetched once per epoch, or only once if
    the whole cache fits. A fetched file is unlinked as soon as it is mapped, so its space is released even if the
    process is killed. A stream has no `labels`, `names` or `verify`, which need all shards.

    Args:
        url: the folder of the cache, as fsspec takes it: s3://, gs://, hf://, https://, a path, ...
        folder: where fetched shards are stored.
        max_bytes: the maximum disk space of fetched shards.
        window: the number of rows shuffled together.

    Raises ValueError if `max_bytes` is too small for two windows or the protocol of the URL is unknown, OSError if the
    manifest cannot be fetched, and BrokenArtefact if the manifest is altered or of another format.
    """

    streamed = True

    def __init__(self, url: str, *, folder: Path, max_bytes: int, window: int = WINDOW):
        url = str(url).rstrip("/")
        try:
            self.store, self.path = open_store(url)
        except ValueError as error:
            raise ValueError(f"prepare.cache_url = {url!r}: {error}") from None
        self.remedy = f"copy the complete cache to {url} again"
        with self._with_remedy():
            manifest = self.store.read(f"{self.path}/{MANIFEST}")
        super().__init__(url, parse_manifest(manifest, f"{url}/{MANIFEST}", self.remedy))
        self.blocks = Blocks(self.starts, window)
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.sizes = [shard["bytes"] for shard in self.manifest["shards"]]
        per_window = window * sum(self.sizes) / len(self) + max(self.sizes)
        if max_bytes < (needed := min(sum(self.sizes), 2 * per_window)):
            raise ValueError(
                f"prepare.local_gib = {max_bytes / 2**30:.2f} is too small for {self.where}: the current and the "
                f"next window need {needed / 2**30:.2f} GiB. Raise it, or lower prepare.window_images = {window}, "
                "which shuffles fewer images together"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale(self.folder)
        self.local: dict[int, Future] = {}  # shard -> its tensors, in the order of the requests
        self.local_bytes = 0
        self._wanted: dict[int, None] = {}  # an ordered set, needed first comes first
        self._lock = threading.RLock()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="fetch")

    @contextlib.contextmanager
    def _with_remedy(self) -> Iterator[None]:
        try:
            yield
        except Unreachable as error:
            advice = f"Check that the URL is the folder of the cache, or {self.remedy}"
            raise Unreachable(f"{error}. {advice}") from None

    def expect(self, windows: Sequence[np.ndarray]) -> None:
        """Start fetching the shards of these windows, in order, until `max_bytes` is reached."""
        with self._lock:
            self._wanted = dict.fromkeys(int(shard) for shards in windows for shard in shards)
            for number in [n for n in self.local if n not in self._wanted and not self.local[n].done()]:
                self._release(number)
            removable = iter([n for n in self.local if n not in self._wanted])
            for number in self._wanted:
                if number not in self.local:
                    if not self._make_room(number, removable):
                        break
                    self._begin(number)

    def learned_state(self) -> dict[str, Tensor]:
        """Fetch the fitted state of the codec; see `JointCodec.learned_state`. Raises OSError or BrokenArtefact."""
        where = f"{self.where}/{LEARNED}"
        with self._with_remedy():
            content = self.store.read(f"{self.path}/{LEARNED}")
        expected = self.manifest.get("learned")
        if expected is not None and hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise BrokenArtefact(f"{where} was altered after it was written: {self.remedy}")
        try:
            return load(content)
        except SafetensorError as error:
            raise BrokenArtefact(f"{where} is damaged ({error}): {self.remedy}") from None

    def sample_positions(self, num_images: int) -> np.ndarray:
        """Return positions for statistics, evenly spaced in evenly spaced shards of about 1 GiB in total."""
        num_images = min(num_images, len(self))
        num_shards = max(1, min(SAMPLE_BYTES // max(self.sizes), len(self.sizes), num_images))
        shards = np.linspace(0, len(self.sizes) - 1, num_shards).round().astype(int)
        rows = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards])
        return rows[np.linspace(0, len(rows) - 1, min(num_images, len(rows))).round().astype(int)]

    def _shard(self, number: int) -> Mapping[str, np.ndarray]:
        while True:
            with self._lock:
                future = self.local.get(number)
                if future and future.done() and future.exception():
                    self._release(number)  # fetching ahead failed; try again
                    future = None
                if future is None:
                    unwanted = [n for n in self.local if n not in self._wanted]
                    latest_first = [n for n in reversed(self._wanted) if n in self.local]
                    if self._make_room(number, iter(unwanted + latest_first)):
                        future = self._begin(number)
                running = [other for other in self.local.values() if not other.done()]
            if future is not None:
                return future.result()
            wait(running, return_when=FIRST_COMPLETED)

    def _make_room(self, number: int, removable: Iterator[int]) -> bool:
        """Release removable shards in order until this shard fits; return whether it does."""
        while self.local_bytes + self.sizes[number] > self.max_bytes:
            if (other := next(removable, None)) is None:
                return False
            self._release(other)
        return True

    def _release(self, number: int) -> None:
        """Release the space of a shard, unless it is being fetched at the moment."""
        if self.local[number].cancel() or self.local[number].done():
            del self.local[number]
            self.local_bytes -= self.sizes[number]

    def _begin(self, number: int) -> Future:
        self.local_bytes += self.sizes[number]
        self.local[number] = self._threads.submit(self._fetch, number)
        return self.local[number]

    def _fetch(self, number: int) -> dict[str, np.ndarray]:
        record = self.manifest["shards"][number]
        with self._with_remedy():
            source = f"{self.path}/{record['file']}"
            path = self.store.fetch(source, self.folder, num_bytes=record["bytes"], digest=record["sha256"])
        try:
            arrays = map_shard(path, record, self.manifest["tensors"])
        finally:
            with contextlib.suppress(OSError):  # Windows cannot unlink a mapped file
                path.unlink()
        check_labels(arrays["labels"], self.num_classes, f"{self.where}/{record['file']}", self.remedy)
        return arrays
