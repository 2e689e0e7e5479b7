"""Read files from a disk, a URL or object storage through fsspec, completely or in ranges, with retries."""

import bisect
import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fsspec.core import url_to_fs
from fsspec.utils import merge_offset_ranges

from redi.runtime.checksums import sha256

log = logging.getLogger(__name__)

ATTEMPTS = 4  # requests before a file counts as unreachable
PAUSE_SECONDS = 0.5  # before the second attempt; doubled before each further attempt
GAP_BYTES = 2**16  # ranges with a smaller gap are merged, because a second request would take longer
PIECE_BYTES = 2**22  # maximum size of a request, so that a contiguous batch uses several connections
LEAST_AHEAD, MOST_AHEAD = 2**12, 2**20  # bytes that RangedFile reads ahead
MAX_READ = 2**20  # of a header or a label; a pax header may claim any size
PARTIAL = ".partial"
STALE_SECONDS = 24 * 3600.0  # older partial files belong to processes that were killed
STREAM = "'redi-diffusion[stream]'"
EXTRAS = {"http": STREAM, "https": STREAM, "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}

Result = TypeVar("Result")
Range = tuple[str, int, int]  # path, first byte, byte after the last


class Unreachable(OSError):
    """A file cannot be read from its store, or differs from what was published."""


def open_store(url: str) -> tuple["ObjectStore", str]:
    """Return the store of a URL or path, and the path in it. Raises ValueError (unknown protocol) or ImportError."""
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        package = EXTRAS.get(url.split("://")[0], "the package named in this message")
        raise ImportError(f"{url} cannot be read ({error}): pip install {package}") from None
    return ObjectStore(files), path


class ObjectStore:
    """Read the files of an fsspec file system; thread-safe."""

    def __init__(self, files):
        self.files = files

    def read(self, path: str) -> bytes:
        """Read a small file. Raises Unreachable."""
        return self.retry(path, lambda: self.files.cat_file(path))

    def fetch(self, path: str, folder: Path, *, num_bytes: int, digest: str) -> Path:
        """Copy `path` to a new file in `folder`, and check its size and SHA-256. Raises Unreachable."""

        def copy() -> Path:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL, delete=False) as file:
                local = Path(file.name)
            try:
                self.files.get_file(path, str(local))
                if (size := local.stat().st_size) != num_bytes:
                    raise OSError(f"received {size} bytes instead of {num_bytes}")
                if sha256(local) != digest:
                    raise OSError("its SHA-256 differs from the manifest: it is damaged or belongs to another cache")
            except BaseException:
                local.unlink(missing_ok=True)
                raise
            return local

        return self.retry(path, copy)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read the bytes of each range; nearby ranges share a request. Raises Unreachable."""
        if not ranges:
            return []
        columns = map(list, zip(*sorted(set(ranges)), strict=True))
        merged = merge_offset_ranges(*columns, max_gap=GAP_BYTES, max_block=PIECE_BYTES)
        pieces: list[Range] = list(zip(*merged, strict=True))
        content: dict[Range, bytes] = {}

        def fetch() -> None:
            missing, error = [piece for piece in pieces if piece not in content], None
            results = self.files.cat_ranges(*map(list, zip(*missing, strict=True)), on_error="return")
            for piece, result in zip(missing, results, strict=True):
                if isinstance(result, Exception):
                    error = result
                elif len(result) != piece[2] - piece[1]:
                    error = _wrong_length(piece, len(result))
                else:
                    content[piece] = result
            if error:
                raise error

        self.retry(pieces[0][0] if len({path for path, _, _ in pieces}) == 1 else "shards", fetch)
        parts = []
        for path, start, stop in ranges:
            piece = pieces[bisect.bisect_right(pieces, (path, start, math.inf)) - 1]
            parts.append(content[piece][start - piece[1] : stop - piece[1]])
        return parts

    def retry(self, where: str, call: Callable[[], Result]) -> Result:
        """Return the result of `call`; retry unless the file is missing or access is denied. Raises Unreachable."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:  # every file system raises its own exceptions
                # HTTPFileSystem raises FileNotFoundError for every failure, with the original error as its cause.
                cause = error.__cause__ or error if isinstance(error, FileNotFoundError) else error
            problem, status = f"{type(cause).__name__}: {cause}", getattr(cause, "status", None)
            if status in (404, 410) or isinstance(cause, FileNotFoundError):
                raise Unreachable(f"{where} does not exist ({problem})") from None
            if status in (401, 403) or isinstance(cause, PermissionError) or "Credential" in type(cause).__name__:
                advice = "set the credentials that the store's own tools use ($AWS_PROFILE, ...)"
                raise Unreachable(f"{where}: access denied ({problem}); {advice}") from None
            if "support range requests" in str(cause):
                reason = "the server does not support range requests, so images cannot be read at random positions"
                raise Unreachable(f"{where}: {reason}: copy the shards to a disk or to another store") from None
            if attempt < ATTEMPTS:
                log.warning("%s: attempt %d of %d failed: %s", where, attempt, ATTEMPTS, problem)
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise Unreachable(f"{where}: unreachable in {ATTEMPTS} attempts; the last error was {problem}") from None


class RangedFile:
    """A read-only file for `tarfile`. Reads fetch 4 KiB at first, and up to 1 MiB while they are close together."""

    def __init__(self, store: ObjectStore, path: str, size: int):
        self.store, self.path, self.size = store, path, size
        # Not cat_file: an open file detects a server without range requests before the download is complete.
        self.file = store.retry(path, lambda: store.files.open(path, "rb", cache_type="none"))
        self.position, self.start, self.buffer, self.ahead = 0, 0, b"", LEAST_AHEAD

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.position

    def seek(self, position: int) -> None:
        """Move to an absolute position in bytes."""
        self.position = position

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes. Raises ValueError for more than MAX_READ."""
        if not 0 <= count <= MAX_READ or self.position < 0:
            raise ValueError(f"a header has {count} bytes; at most {MAX_READ} are read")
        first, stop, end = self.position, min(self.position + count, self.size), self.start + len(self.buffer)
        if stop <= first:
            return b""
        if not self.start <= first <= stop <= end:
            is_near = self.start <= first <= end + GAP_BYTES
            self.ahead = min(2 * self.ahead, MOST_AHEAD) if is_near else LEAST_AHEAD
            self.start, until = first, min(first + max(count, self.ahead), self.size)
            self.buffer = self.store.retry(self.path, lambda: self._fetch(first, until))
        self.position = stop
        return self.buffer[first - self.start : stop - self.start]

    def _fetch(self, start: int, stop: int) -> bytes:
        self.file.seek(start)
        content = self.file.read(stop - start)
        if len(content) != stop - start:
            raise _wrong_length((self.path, start, stop), len(content))
        return content

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def remove_stale(folder: Path) -> None:
    """Delete partial files of processes that were killed."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another process may delete it first
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _wrong_length(piece: Range, num_bytes: int) -> OSError:
    path, start, stop = piece
    if num_bytes > stop - start:
        return OSError(f"{path}: the server does not support range requests: {num_bytes} bytes for {stop - start}")
    return OSError(f"{path}: received {num_bytes} bytes instead of {stop - start}: the file has become shorter")
