"""Recognize files with the same content although their modification times differ, as after a copy or a checkout.

The keys of results computed from a folder's images depend on names, sizes and modification times, so a normal start
reads no image. Every file is hashed once, at the first audit, and the hash is stored in the cache folder. If names and
sizes match but modification times differ, all files are hashed again; equal contents get their previous key.
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

NUM_THREADS = 16  # for reading files, which mostly waits for the disk


class Contents:
    """The identity and the content hash of files.

    Args:
        files: {name: numbers that identify the file}: size and modification time in a folder, size and CRC in a zip.
        names: the files to use, in order.
        root: the folder of the files; None for an archive.
    """

    def __init__(self, files: Mapping[str, tuple[int, ...]], names: Sequence[str], root: Path | None = None):
        self.files, self.names, self.root = files, names, root
        self.identity = _hash(f"{name}\0{files[name]}\0" for name in names)

    @cached_property
    def key(self) -> str:
        """The key of stored results: the identity that the files had when their content was first hashed."""
        if self.root is None or (path := self._path()) is None or not (hashes := _read(path)):
            return self.identity
        return next((identity for identity, contents in hashes.items() if contents == self.sha256), self.identity)

    @cached_property
    def sha256(self) -> str:
        """A hash of all names and contents, stored or computed by reading all files. Raises OSError."""
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
        """Return the file of stored hashes; None if the cache folder is not writable."""
        sizes = _hash(f"{name}\0{self.files[name][0]}\0" for name in self.names)
        try:
            cache = cache_folder(None)
        except ValueError as error:
            log.warning("hashes of the image files are not stored: %s", error)
            return None
        folder = cache / "folders"
        return folder / f"{sizes[:32]}.json" if os.access(folder if folder.exists() else cache, os.W_OK) else None

    def _read_all(self) -> str:
        assert self.root is not None  # the files of an archive have checksums
        paths = [self.root / name for name in self.names]
        hashes = in_threads(sha256, paths, NUM_THREADS, "hashing every file once")
        return _hash(f"{name}\0{digest}\0" for name, digest in zip(self.names, hashes, strict=True))


def same_images(source, fingerprint: str, contents: str | None) -> bool | None:
    """Return whether a data set or cache has the images of these fingerprints; None if `contents` is not recorded."""
    if source.fingerprint() == fingerprint:
        return True
    current = source.content_fingerprint()
    return None if None in (contents, current) else contents == current


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Read {identity: content hash}, oldest first; {} if there is no file. A damaged file is deleted."""
    try:
        return read_sealed(path) or {}
    except BrokenArtefact as error:
        log.warning("hashing the image files again, because the stored hashes are damaged: %s", error)
        path.unlink(missing_ok=True)
        return {}
