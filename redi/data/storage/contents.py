"""Which files hold the same bytes, although their times of change differ, as after a copy or a checkout.

Keys of what was computed from a folder's images hold names, sizes and times of change, so that a usual start reads no
image. What every file held is read once, at the first audit, and remembered in the cache folder. Where the same names
and sizes come with other times, all files are read again, and the same contents have the key that they had before.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from redi.runtime.atomic import write_json
from redi.runtime.checksums import sealed, sha256, unsealed
from redi.runtime.paths import cache_folder
from redi.runtime.progress import progress
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

NUM_THREADS = 16  # files that are read at a time: mostly waiting for a disk
BLOCK = 4096  # files that are queued at a time


class Contents:
    """The files `names`, of which `files` says what identifies each: here size and checksum."""

    def __init__(self, files: Mapping[str, tuple[int, ...]], names: Sequence[str]):
        self.files, self.names = files, names

    @cached_property
    def key(self) -> str:
        """For what is computed from the files."""
        return _hash(f"{name}\0{self.files[name]}\0" for name in self.names)

    @property
    def sha256(self) -> str:
        """The same for all files of these names and contents."""
        return self.key


class FolderContents(Contents):
    """Files of the folder `root`, identified by size and time of change."""

    def __init__(self, files: Mapping[str, tuple[int, ...]], names: Sequence[str], root: Path):
        super().__init__(files, names)
        self.root = root

    @cached_property
    def key(self) -> str:
        """A hash of names, sizes and times: those that the files had when these contents were first read."""
        if (path := self._path()) is None or not path.exists():
            return self._dated
        return _read(path)["keys"].get(self.sha256, self._dated)

    @cached_property
    def sha256(self) -> str:
        """Remembered, or else of reading all files. Raises OSError."""
        if (path := self._path()) is None:
            return self._read_all()

        def finish() -> None:
            record, contents = _read(path), self._read_all()
            times, keys = record["times"] | {self._dated: contents}, {contents: self._dated} | record["keys"]
            write_json(path, sealed({"times": times, "keys": keys}))

        def remembered() -> str | None:
            return _read(path)["times"].get(self._dated)

        complete(path.with_suffix(".work"), finished=lambda: remembered() is not None, finish=finish)
        return remembered()

    @cached_property
    def _dated(self) -> str:
        return _hash(f"{name}\0{self.files[name]}\0" for name in self.names)

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
        parts = []
        bar = progress(total=len(self.names), desc="reading every file once", unit="img")
        with bar, ThreadPoolExecutor(NUM_THREADS) as pool:
            for start in range(0, len(self.names), BLOCK):
                block = self.names[start : start + BLOCK]
                for name, digest in zip(block, pool.map(lambda name: sha256(self.root / name), block), strict=True):
                    parts.append(f"{name}\0{digest}\0")
                    bar.update()
        return _hash(parts)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, dict[str, str]]:
    """{"times": {hash of times: contents}, "keys": {contents: key}}; empty where nothing lies there, and something
    damaged is removed."""
    try:
        record = unsealed(json.loads(path.read_text()), path)
        return {"times": dict(record["times"]), "keys": dict(record["keys"])}
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # also BrokenArtefact
        log.warning("the images' files are read again, because %s is damaged: %s", path, error)
        path.unlink(missing_ok=True)
    return {"times": {}, "keys": {}}
