"""Which files hold the same bytes, although their times of change differ, as after a copy or a checkout.

Keys of what was computed from a folder's images hold names, sizes and times of change, so that a usual start reads no
image. What every file held is read once, at the first audit, and remembered in the cache folder. Where the same names
and sizes come with other times, all files are read again, and the same contents have the key that they had before.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from redi.runtime.atomic import write_json
from redi.runtime.checksums import BrokenArtefact, read_sealed, sealed, sha256
from redi.runtime.paths import cache_folder
from redi.runtime.progress import in_threads
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

NUM_THREADS = 16  # files that are read at a time: mostly waiting for a disk


class Contents:
    """The files `names`, of which `files` says what identifies each: size and checksum, or in a folder, `root`, size
    and time of change.
    """

    def __init__(self, files: Mapping[str, tuple[int, ...]], names: Sequence[str], root: Path | None = None):
        self.files, self.names, self.root = files, names, root
        self.identity = _hash(f"{name}\0{files[name]}\0" for name in names)

    @cached_property
    def key(self) -> str:
        """For what is computed from the files: the identity that they had when these contents were first read."""
        if self.root is None or (path := self._path()) is None or not (known := _read(path)):
            return self.identity
        return next((identity for identity, contents in known.items() if contents == self.sha256), self.identity)

    @cached_property
    def sha256(self) -> str:
        """The same for all files of these names and contents: remembered, or of reading all files. Raises OSError."""
        if self.root is None:
            return self.identity
        if (path := self._path()) is None:
            return self._read_all()
        complete(
            path.with_suffix(".work"), finished=lambda: self.identity in _read(path),
            finish=lambda: write_json(path, sealed(_read(path) | {self.identity: self._read_all()})),
        )  # fmt: skip
        return _read(path)[self.identity]

    def _path(self) -> Path | None:
        """Where it is remembered; None where this user can write no cache."""
        sizes = _hash(f"{name}\0{self.files[name][0]}\0" for name in self.names)
        try:
            cache = cache_folder(None)
        except ValueError as error:
            log.warning("what the images' files hold is not remembered: %s", error)
            return None
        folder = cache / "folders"
        return folder / f"{sizes[:32]}.json" if os.access(folder if folder.exists() else cache, os.W_OK) else None

    def _read_all(self) -> str:
        hashes = in_threads(lambda name: sha256(self.root / name), self.names, NUM_THREADS, "reading every file once")
        return _hash(f"{name}\0{digest}\0" for name, digest in zip(self.names, hashes, strict=True))


def same_images(source, fingerprint: str, contents: str | None) -> bool | None:
    """Whether a data set, or a cache, holds the images of which these fingerprints were kept; None: they may be, but an
    earlier version kept no contents.
    """
    if source.fingerprint() == fingerprint:
        return True
    now = source.content_fingerprint()
    return None if None in (contents, now) else contents == now


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """{identity: contents}, the first read first; empty where nothing lies there; something damaged is removed."""
    try:
        return read_sealed(path) or {}
    except BrokenArtefact as error:
        log.warning("the images' files are read again, because what was remembered is damaged: %s", error)
        path.unlink(missing_ok=True)
        return {}
