"""Files of a folder at a URL, through fsspec: fetched, verified, fetched again where that fails."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from redi.runtime.checksums import sha256

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before each further one
STALE_SECONDS = 24 * 3600.0  # a half-fetched file that old is of a process that was killed
PARTIAL = ".partial"
EXTRAS = {"http": "redi[stream]", "https": "redi[stream]", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}

Result = TypeVar("Result")


class RemoteFolder:
    """A folder that fsspec can read.

    Args:
        url: with or without a slash at its end. Credentials are those of the store's own tools: environment or
            configuration files.
        attempts: how often a file is tried before it counts as unreadable.

    Raises:
        ValueError: fsspec knows no such kind of URL.
        ImportError: the package for this kind of store is not installed; says which.
    """

    def __init__(self, url: str, *, attempts: int = 4):
        from fsspec.core import url_to_fs

        self.url, self.attempts = str(url).rstrip("/"), attempts
        self.remedy = f"copy the cache to {self.url} again, whole"
        protocol = self.url.split("://")[0]
        try:
            self.files, self.path = url_to_fs(self.url)
        except ImportError as error:
            package = EXTRAS.get(protocol, "the package that it names")
            raise ImportError(f"{self.url} cannot be read ({error}): pip install {package}") from None
        except ValueError as error:
            raise ValueError(f"prepare.cache_url = {self.url!r}: {error}") from None

    def read(self, name: str) -> bytes:
        """A small file. Raises OSError."""
        try:
            return self._retried(name, lambda: self.files.cat_file(f"{self.path}/{name}"), final=(FileNotFoundError,))
        except FileNotFoundError:
            what = "is not there: is the URL that of the cache's own folder, and was all of it copied?"
            raise FileNotFoundError(f"{self.url}/{name} {what}") from None

    def fetch(self, record: Mapping, folder: Path) -> Path:
        """-> a file in `folder` with the content of a shard (see `write_shard`), verified. Raises OSError."""
        path = folder / f"{uuid.uuid4().hex}{PARTIAL}"

        def copy() -> Path:
            try:
                self.files.get_file(f"{self.path}/{record['file']}", str(path))
                if (size := path.stat().st_size) != record["bytes"]:
                    raise OSError(f"{size} bytes came instead of {record['bytes']}")
                if sha256(path) != record["sha256"]:
                    raise OSError("its SHA-256 is not the manifest's: damaged, or of another cache")
                return path
            except BaseException:
                path.unlink(missing_ok=True)
                raise

        return self._retried(record["file"], copy)

    def _retried(self, name: str, read: Callable[[], Result], final: tuple[type[Exception], ...] = ()) -> Result:
        """What `read` gives at last; errors of the kinds `final` are raised at once."""
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except final:
                raise
            except Exception as error:  # every file system has its own kinds
                cause, problem = error, f"{type(error).__name__}: {error}"
            if _is_denied(cause):
                what = (
                    f"access is denied ({problem}); credentials are those of the store's own tools ($AWS_PROFILE, ...)"
                )
                raise PermissionError(f"{self.url}/{name}: {what}") from cause
            if attempt < self.attempts:
                log.warning("%s/%s: attempt %d of %d failed: %s", self.url, name, attempt, self.attempts, problem)
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        what = f"not to be had in {self.attempts} attempts, the last: {problem}"
        raise OSError(
            f"{self.url}/{name}: {what}. Is the store reachable, the file there? Else {self.remedy}"
        ) from cause


def remove_stale(folder: Path) -> None:
    """Deletes half-fetched files of processes that were killed."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another process may have been first
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _is_denied(error: Exception) -> bool:
    """As far as it can be told: PermissionError, an HTTP status, or botocore's NoCredentialsError and its like."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__
