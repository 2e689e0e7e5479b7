"""Files on a disk, at a URL or in object storage, through fsspec: whole or in ranges, again where a request fails."""

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

ATTEMPTS = 4  # requests for the same bytes before they count as unreachable
PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before each further one
GAP_BYTES = 2**16  # on a fast link a second request costs more than reading this much that nobody needs
PIECE_BYTES = 2**22  # of one request: a batch that lies in one piece still comes by several connections
LEAST_AHEAD, MOST_AHEAD = 2**12, 2**20
MAX_READ = 2**20  # of a header or a label at once; a pax header may claim any size
PARTIAL = ".partial"
STALE_SECONDS = 24 * 3600.0  # a half-fetched file this old is of a process that was killed
EXTRAS = {"http": "redi[stream]", "https": "redi[stream]", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}

Result = TypeVar("Result")
Range = tuple[str, int, int]  # path, first byte, byte after the last


class Unreachable(OSError):
    """A file that its store does not give, or not as it was published."""


def open_store(url: str) -> tuple["ObjectStore", str]:
    """-> the store of a URL or path, and the path in it. Raises ValueError for an unknown kind of URL, ImportError
    where its package is missing.
    """
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        package = EXTRAS.get(url.split("://")[0], "the package that it names")
        raise ImportError(f"{url} cannot be read ({error}): pip install {package}") from None
    return ObjectStore(files), path


class ObjectStore:
    """Reads the files of one store, an fsspec file system; threads may share it."""

    def __init__(self, files):
        self.files = files

    def read(self, path: str) -> bytes:
        """A small file. Raises Unreachable."""
        return self.retried(path, lambda: self.files.cat_file(path))

    def fetch(self, path: str, folder: Path, *, num_bytes: int, digest: str) -> Path:
        """-> a new file in `folder` with the content of `path`, of this size and SHA-256. Raises Unreachable."""

        def copy() -> Path:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=PARTIAL, delete=False) as file:
                local = Path(file.name)
            try:
                self.files.get_file(path, str(local))
                if (size := local.stat().st_size) != num_bytes:
                    raise OSError(f"{size} bytes came instead of {num_bytes}")
                if sha256(local) != digest:
                    raise OSError("its SHA-256 is not the manifest's: damaged, or of another cache")
            except BaseException:
                local.unlink(missing_ok=True)
                raise
            return local

        return self.retried(path, copy)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range; those that lie close together come with one request. Raises Unreachable."""
        if not ranges:
            return []
        columns = map(list, zip(*sorted(set(ranges)), strict=True))
        merged = merge_offset_ranges(*columns, max_gap=GAP_BYTES, max_block=PIECE_BYTES)
        pieces: list[Range] = list(zip(*merged, strict=True))
        content: dict[Range, bytes] = {}

        def fetch() -> None:
            missing, error = [piece for piece in pieces if piece not in content], None
            answers = self.files.cat_ranges(*map(list, zip(*missing, strict=True)), on_error="return")
            for piece, answer in zip(missing, answers, strict=True):
                if isinstance(answer, Exception):
                    error = answer
                elif len(answer) != piece[2] - piece[1]:
                    error = _wrong_length(piece, len(answer))
                else:
                    content[piece] = answer
            if error:
                raise error

        self.retried(pieces[0][0] if len({path for path, _, _ in pieces}) == 1 else "shards", fetch)
        parts = []
        for path, start, stop in ranges:
            piece = pieces[bisect.bisect_right(pieces, (path, start, math.inf)) - 1]
            parts.append(content[piece][start - piece[1] : stop - piece[1]])
        return parts

    def retried(self, where: str, call: Callable[[], Result]) -> Result:
        """The result of `call`, which is not repeated for what is missing or denied. Raises Unreachable."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:  # every file system has its own kinds
                # HTTPFileSystem calls every failure FileNotFoundError, and keeps the truth as its cause
                cause = error.__cause__ or error if isinstance(error, FileNotFoundError) else error
            problem, status = f"{type(cause).__name__}: {cause}", getattr(cause, "status", None)
            if status in (404, 410) or isinstance(cause, FileNotFoundError):
                raise Unreachable(f"{where} is not there ({problem})") from None
            if status in (401, 403) or isinstance(cause, PermissionError) or "Credential" in type(cause).__name__:
                what = f"access is denied ({problem}); credentials are those of the store's own tools"
                raise Unreachable(f"{where}: {what} ($AWS_PROFILE, ...)") from None
            if "support range requests" in str(cause):
                what = "the server does not give parts of a file (no range requests), so images cannot be read"
                advice = "at random places: copy the shards to a disk or to another store"
                raise Unreachable(f"{where}: {what} {advice}") from None
            if attempt < ATTEMPTS:
                log.warning("%s: attempt %d of %d failed: %s", where, attempt, ATTEMPTS, problem)
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise Unreachable(f"{where}: unreachable in {ATTEMPTS} attempts, the last: {problem}") from None


class RangedFile:
    """A file for `tarfile`: headers between images of 100 kB take 4 KiB each, small images come in pieces of 1 MiB."""

    def __init__(self, store: ObjectStore, path: str, size: int):
        self.store, self.path, self.size = store, path, size
        # Not cat_file: only an open file notices a server without ranges before all of it has come
        self.file = store.retried(path, lambda: store.files.open(path, "rb", cache_type="none"))
        self.position, self.start, self.buffer, self.ahead = 0, 0, b"", LEAST_AHEAD

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_READ or self.position < 0:
            raise ValueError(f"a header of {count} bytes; at most {MAX_READ} are read")
        first, stop, end = self.position, min(self.position + count, self.size), self.start + len(self.buffer)
        if stop <= first:
            return b""
        if not self.start <= first <= stop <= end:
            near = self.start <= first <= end + GAP_BYTES
            self.ahead = min(2 * self.ahead, MOST_AHEAD) if near else LEAST_AHEAD
            self.start, until = first, min(first + max(count, self.ahead), self.size)
            self.buffer = self.store.retried(self.path, lambda: self._fetch(first, until))
        self.position = stop
        return self.buffer[first - self.start : stop - self.start]

    def _fetch(self, start: int, stop: int) -> bytes:
        self.file.seek(start)
        content = self.file.read(stop - start)
        if len(content) != stop - start:
            raise _wrong_length((self.path, start, stop), len(content))
        return content

    def close(self) -> None:
        self.file.close()


def remove_stale(folder: Path) -> None:
    """Deletes half-fetched files of processes that were killed."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another process may have been first
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _wrong_length(piece: Range, num_bytes: int) -> OSError:
    path, start, stop = piece
    if num_bytes > stop - start:
        return OSError(f"{path}: the server does not support range requests: {num_bytes} bytes for {stop - start}")
    return OSError(f"{path}: {num_bytes} bytes came for {stop - start}: the file has become shorter")
