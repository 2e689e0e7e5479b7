"""A folder of parts: written by several processes, checked in full, and put in its place as a whole."""

import contextlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from redi.data.cache.cache import altered_files
from redi.runtime.artefact import RECORD, TENSORS, check_size, load_tensors, write_record
from redi.runtime.atomic import rename, save_tensors, write_json
from redi.runtime.checksums import BrokenArtefact, sealed, sha256, unsealed

log = logging.getLogger(__name__)


class Parts:
    """What `redi.runtime.shared_work.complete` needs to fill `folder` part by part; its files lie in `work` until then.

    Args:
        folder: gets one safetensors file for each part and a record.json that lists them with their checksums.
        work: a folder on the same file system, of these parts alone: what is there of them is not made again.
        names: of the parts, in order.
    """

    def __init__(self, folder: Path, work: Path, names: Sequence[str]):
        self.folder, self.work, self.names = folder, work, names
        self.written: set[str] = set()  # by this process, and so known to be whole

    def __contains__(self, name: str) -> bool:
        return self._record(name).exists()

    def write(self, name: str, tensors: Mapping[str, Tensor], record: Mapping) -> None:
        """Stores a part, atomically; `record` is what `checked` gives of it. Raises OSError for a full disk."""
        self._require_space(tensors)
        for path in (self._file(name), self._record(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.work / f".{self.folder.name}.{name}.{uuid.uuid4().hex[:12]}.partial"
        try:
            save_tensors(temporary, tensors)
            facts = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            rename(temporary, self._file(name))
        finally:
            temporary.unlink(missing_ok=True)
        write_json(self._record(name), sealed({"file": facts, **record}))
        self.written.add(name)

    def _require_space(self, tensors: Mapping[str, Tensor]) -> None:
        needed = sum(tensor.nbytes for tensor in tensors.values()) * sum(name not in self for name in self.names)
        free = shutil.disk_usage(self.work).free
        if free < needed:
            what = f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free"
            raise OSError(f"no space for {self.folder}: {what}; what was finished is kept")

    def checked(self) -> dict[str, dict] | None:
        """The records of all parts; None where some are not as they were written, and those are then undone."""
        records = {name: self._read(name) for name in self.names}
        damaged = [name for name, record in records.items() if record is None]
        if not damaged:
            others = {name: record for name, record in records.items() if name not in self.written}
            altered = altered_files({self._file(name): record["file"]["sha256"] for name, record in others.items()})
            damaged = [path.stem for path in altered]
        if damaged:
            log.warning("made again, for it was damaged: %s of %s", ", ".join(damaged), self.folder)
        for name in damaged:
            self.written.discard(name)
            self._record(name).unlink(missing_ok=True)
        return None if damaged else records

    def assemble(self, record: Mapping, records: Mapping[str, dict]) -> None:
        """Puts the folder in its place with this record; what is there is replaced. `records`: of `checked`."""
        files = {f"{name}{TENSORS}": part["file"] for name, part in records.items()}
        stored = self._file("").parent
        write_record(stored, {**record, "files": files})
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        before = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:12]}.replaced")
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(before)
        try:
            rename(stored, self.folder)
        except OSError:
            if before.exists() and not self.folder.exists():
                before.rename(self.folder)
            raise
        for old in self.folder.parent.glob(f".{self.folder.name}.*.replaced"):  # also of one that was killed here
            shutil.rmtree(old, ignore_errors=True)

    def _read(self, name: str) -> dict | None:
        try:
            path = self._record(name)
            record = unsealed(json.loads(path.read_text()), path)
            return record if {"bytes", "sha256"} <= set(record["file"]) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also BrokenArtefact
            return None

    def _file(self, name: str) -> Path:
        return self.work / self.folder.name / f"{name}{TENSORS}"

    def _record(self, name: str) -> Path:
        return self.work / f"{self.folder.name}.records" / f"{name}.json"


def load_part(folder: Path, file: str, expected: Mapping) -> dict[str, Tensor]:
    """The tensors of one file of a folder, as its record expects them. Raises BrokenArtefact."""
    path = folder / file
    check_size(path, expected)
    if sha256(path) != expected["sha256"]:
        raise BrokenArtefact(f"{path} was altered after it was written: its SHA-256 differs from {RECORD}")
    return load_tensors(path)
