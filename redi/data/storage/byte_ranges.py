"""Byte ranges of files on a disk or in object storage, through fsspec: many at once, and again where that fails."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before each further one
GAP_BYTES = 2**16  # so much that nobody needs is read rather than asking twice: a request costs a fast link more
PIECE_BYTES = 2**22  # of one request: a batch that lies in one piece still comes by several connections
LEAST_AHEAD, MOST_AHEAD = 2**12, 2**20
MAX_READ = 2**20  # of a header or a label at once; a pax header may claim any size
EXTRAS = {"http": "redi[stream]", "https": "redi[stream]", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}

Result = TypeVar("Result")
Range = tuple[str, int, int]  # path, first byte, byte after the last


class Unreachable(OSError):
    """A file that its store does not give: says nothing about what the file holds."""


def open_store(url: str):
    """-> the fsspec file system of a URL or path, and the path in it.

    Raises:
        ValueError: fsspec knows no such kind of URL.
        ImportError: the package for it is not installed; says which.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        package = EXTRAS.get(url.split("://")[0], "the package that it names")
        raise ImportError(f"{url} cannot be read ({error}): pip install {package}") from None


class RangeReader:
    """Reads ranges of the files of one store. Threads may share it; pickling keeps no connection.

    Args:
        files: an fsspec file system.
        attempts: how often something is asked for before it counts as unreachable; of a disk, once.
    """

    def __init__(self, files, *, attempts: int = 4):
        from fsspec.implementations.local import LocalFileSystem

        self.files, self.local = files, isinstance(files, LocalFileSystem)
        self.attempts = 1 if self.local else attempts

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """What each range holds; those that lie close together come with one request. Raises Unreachable."""
        pieces, places = _pieces(ranges)
        done: dict[Range, bytes] = {}

        def fetch() -> None:
            missing, error = [piece for piece in pieces if piece not in done], None
            paths, starts, stops = (list(column) for column in zip(*missing, strict=True))
            for piece, answer in zip(
                missing, self.files.cat_ranges(paths, starts, stops, on_error="return"), strict=True
            ):
                if isinstance(answer, bytes) and len(answer) == piece[2] - piece[1]:
                    done[piece] = answer
                else:
                    error = answer if isinstance(answer, Exception) else _misfit(piece, len(answer))
            if error:
                raise error

        if pieces:
            self.retried(pieces[0][0] if len({piece[0] for piece in pieces}) == 1 else "shards", fetch)
        return [
            done[pieces[place]][start - pieces[place][1] : stop - pieces[place][1]]
            for place, (_, start, stop) in zip(places, ranges, strict=True)
        ]

    def retried(self, where: str, call: Callable[[], Result]) -> Result:
        """What `call` gives at last; what is missing or denied is not asked for again. Raises Unreachable."""
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except Exception as error:  # every file system has its own kinds
                # HTTPFileSystem calls whatever went wrong FileNotFoundError, and keeps the truth as its cause
                cause = error.__cause__ or error if isinstance(error, FileNotFoundError) else error
            problem, status = f"{type(cause).__name__}: {cause}", getattr(cause, "status", None)
            if status in (404, 410) or isinstance(cause, FileNotFoundError):
                raise Unreachable(f"{where} is not there ({problem})") from None
            if status in (401, 403) or isinstance(cause, PermissionError) or "Credential" in type(cause).__name__:
                what = f"access is denied ({problem}); credentials are those of the store's own tools"
                raise Unreachable(f"{where}: {what}") from None
            if "support range requests" in str(cause):
                raise Unreachable(
                    f"{where}: the server does not give parts of a file (no range requests), so images cannot be read "
                    "at random places: copy the shards to a disk or to another store"
                ) from None
            if attempt < self.attempts:
                log.warning("%s: attempt %d of %d failed: %s", where, attempt, self.attempts, problem)
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        raise Unreachable(f"{where}: not to be had in {self.attempts} attempts, the last: {problem}") from None


def _misfit(piece: Range, got: int) -> Exception:
    path, start, stop = piece
    if got > stop - start:
        return OSError(f"{path}: the server does not support range requests: {got} bytes came for {stop - start}")
    return OSError(f"{path}: {got} bytes came for {stop - start}: the file has become shorter")


def _pieces(ranges: Sequence[Range]) -> tuple[list[Range], list[int]]:
    """-> the ranges to ask for, and in which of them each of `ranges` lies."""
    pieces: list[Range] = []
    places = [0] * len(ranges)
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        path, start, stop = ranges[number]
        if pieces:
            last, first, end = pieces[-1]
            if path == last and start <= end + GAP_BYTES and max(stop, end) - first <= max(PIECE_BYTES, end - first):
                pieces[-1] = path, first, max(stop, end)
                places[number] = len(pieces) - 1
                continue
        pieces.append((path, start, stop))
        places[number] = len(pieces) - 1
    return pieces, places


class Window:
    """A file for `tarfile` that reads ahead little where it skips much: headers between images of 100 kB take 4 KiB
    each, a file of small images comes in pieces of 1 MiB.

    Args:
        reader: of the store.
        path, size: the file in it, and its bytes.

    Raises:
        ValueError, when read: more than a header or a label can have is asked for.
        Unreachable
    """

    def __init__(self, reader: RangeReader, path: str, size: int):
        self.reader, self.path, self.size = reader, path, size
        # not cat_file: only an open file notices a server without ranges before all of it has come
        self.file = reader.retried(path, lambda: reader.files.open(path, "rb", cache_type="none"))
        self.at, self.start, self.buffer, self.ahead = 0, 0, b"", LEAST_AHEAD

    def tell(self) -> int:
        return self.at

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_READ or self.at < 0:
            raise ValueError(f"a header of {count} bytes; at most {MAX_READ} are read")
        stop, end = min(self.at + count, self.size), self.start + len(self.buffer)
        if stop > self.at and not self.start <= self.at <= stop <= end:
            near = self.start <= self.at <= end + GAP_BYTES
            self.ahead = min(2 * self.ahead, MOST_AHEAD) if near else LEAST_AHEAD
            self.start, until = self.at, min(self.at + max(count, self.ahead), self.size)
            self.buffer = self.reader.retried(self.path, lambda: self._fetch(self.start, until))
        found = self.buffer[self.at - self.start : max(stop - self.start, 0)] if stop > self.at else b""
        self.at += len(found)
        return found

    def _fetch(self, start: int, stop: int) -> bytes:
        self.file.seek(start)
        found = self.file.read(stop - start)
        if len(found) != stop - start:
            raise _misfit((self.path, start, stop), len(found))
        return found

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
