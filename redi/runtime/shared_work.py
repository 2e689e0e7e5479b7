"""Work in parts that any number of processes do together: no process group, no network, only a shared folder."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from redi.runtime.artefact import RECORD, load_artefact, write_record
from redi.runtime.atomic import atomic_file, replace_folder, save_tensors, stamp, write_json
from redi.runtime.checksums import BrokenArtefact, altered_files, read_sealed, sealed, sha256
from redi.runtime.progress import progress

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # waiting processes look again after at most this long


class SharedJob:
    """Parts by index: each is stored on disk, whichever process is free takes the next, and one process finishes.

    A process locks the part that it does. The system releases the lock when the process ends, however it ends, so
    another takes the part. A part is `<work>/<group>/<name>.safetensors` for every group of tensors, and
    `<work>/records/<name>.json` with their checksums, written last. An interrupted job resumes with what is stored.

    Args:
        work: a folder of this job alone, deleted once the job is finished.
        sizes: the number of images in each part.
        kind: parts are named '<kind>-00000', '<kind>-00001', ...
        counts: whether a stored record is one of this job's part; default: every record is.

    Attributes:
        whole: the parts that this process stored, so that they need no check.
    """

    def __init__(
        self, work: Path, sizes: Sequence[int] = (), kind: str = "part",
        counts: Callable[[int, dict], bool] = lambda index, record: True,
    ):  # fmt: skip
        self.work, self.sizes, self.kind, self.counts = work, list(sizes), kind, counts
        self.whole: set[int] = set()
        self.done = [0] * len(self.sizes)  # images of each part that are done, by any process
        self.bar = tqdm(disable=True)

    def run(
        self, *, finished: Callable[[], bool], finish: Callable[[list[dict]], None],
        do: Callable[[int], None] | None = None, rank: int = 0, world_size: int = 1, desc: str = "", unit: str = "img",
    ) -> None:  # fmt: skip
        """Do every part and then `finish`, together with all processes that run this job; return once it is finished.

        Part i belongs to rank i modulo the world size. A process that is done with its own takes those that nobody is
        working on, so a rank that is slow, lost or never started delays the others and stops nothing. Parts that are
        damaged in the end are done again.

        Args:
            finish: takes the records of all parts.
            do: stores a part; the same each time.
        """
        order = sorted(range(len(self.sizes)), key=lambda i: i % world_size != rank)
        with progress(total=sum(self.sizes), desc=desc, unit=unit, disable=rank > 0 or not order) as self.bar:
            if done := len(order) - len(self._missing(order)):
                log.info("%s: %d of %d parts were done before", desc, done, len(order))
            self.bar.initial = self.bar.n  # what was done before is not part of the bar's speed
            pause, quiet_until = 0.05, time.monotonic() + 1
            while not finished():
                self.work.mkdir(parents=True, exist_ok=True)
                missing, busy = self._missing(order), []
                for index in missing or [None]:
                    name = "finish" if index is None else self.name(index)
                    with self._locked(name) as mine:
                        if not mine:
                            busy.append(name)
                        elif not finished() and not (missing and self._is_done(index)):
                            if missing:
                                do(index)
                            elif (records := self._records()) is not None:
                                finish(records)
                if len(busy) < len(missing or [None]):
                    pause = 0.05
                    continue
                if time.monotonic() > quiet_until:
                    log.info("waiting for other processes, which are working on %s", ", ".join(busy[:4]))
                    quiet_until = time.monotonic() + 30
                time.sleep(pause)
                pause = min(2 * pause, POLL_SECONDS)
        shutil.rmtree(self.work, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Whether this process holds the lock until the block ends."""
        lock = FileLock(self.work / f"{name}.lock", blocking=False)
        with contextlib.suppress(Timeout, FileNotFoundError):  # another holds it; or has finished, and all is gone
            lock.acquire()
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _missing(self, order: Sequence[int]) -> list[int]:
        return [index for index in order if not self._is_done(index)]

    def _is_done(self, index: int) -> bool:
        if done := self._record(index).exists():
            self.count(index, self.sizes[index])
        return done

    def count(self, index: int, num_images: int) -> None:
        """Show that this many images of a part are done."""
        if self.done[index] != num_images:
            self.done[index] = num_images
            self.bar.update(sum(self.done) - self.bar.n)

    def store(self, index: int, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping = {}) -> None:
        """Store the tensors of every group, and then the record. Raises OSError for a full disk."""
        size = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
        self.require_space(size / self.sizes[index], "what was finished is kept")
        files = {}
        for group, tensors in groups.items():
            path = self.path(group, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                save_tensors(temporary, tensors)
                files[group] = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
        self.store_record(index, {"files": files, **record})
        self.whole.add(index)
        self.count(index, self.sizes[index])

    def store_record(self, index: int, record: Mapping) -> None:
        """Declare that a part is stored; `record` lists {"files": {group: {"bytes", "sha256"}}}."""
        self._record(index).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._record(index), sealed(record))

    def require_space(self, bytes_per_image: float, remedy: str) -> None:
        """Raise OSError unless the disk has space for all parts that are missing."""
        needed = bytes_per_image * sum(self.sizes[index] for index in self._missing(range(len(self.sizes))))
        if (free := shutil.disk_usage(self.work).free) < needed:
            what = f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free"
            raise OSError(f"no space for {self.work}: {what}; {remedy}")

    def _records(self) -> list[dict] | None:
        """The records of all parts, in order; None where some are damaged, which are then done again.

        Every file that another process stored, now or before, is compared with its checksum.
        """
        records = [self._read(index) for index in range(len(self.sizes))]
        others = [i for i, record in enumerate(records) if record is not None and i not in self.whole]
        expected = {self.path(group, i): (i, file) for i in others for group, file in records[i]["files"].items()}
        altered = altered_files({path: file["sha256"] for path, (_, file) in expected.items()})
        damaged = {i for i, record in enumerate(records) if record is None} | {expected[path][0] for path in altered}
        if not damaged:
            return records
        names = ", ".join(self.name(index) for index in sorted(damaged))
        log.warning("doing again what is damaged or outdated: %s in %s", names, self.work)
        for index in damaged:
            self.whole.discard(index)
            self._record(index).unlink(missing_ok=True)
        return None

    def assemble_artefact(self, group: str, folder: Path, record: Mapping, records: Sequence[dict]) -> None:
        """As `assemble`, with a record.json that lists the files, which lie in `records`."""
        files = {self.path(group, index).name: part["files"][group] for index, part in enumerate(records)}
        write_record(self.path(group), {**record, "files": files})
        self.assemble(group, folder, {RECORD})

    def assemble(self, group: str, folder: Path, others: Collection[str]) -> None:
        """Put the parts of a group in their place as one folder, with the files `others`; replace what is there."""
        known = {self.path(group, index).name for index in range(len(self.sizes))}.union(others)
        for path in self.path(group).iterdir():
            if path.name not in known:  # of an interrupted call with other parts, or of a killed process
                path.unlink()
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(self.path(group), folder)

    def name(self, index: int) -> str:
        return f"{self.kind}-{index:05d}"

    def path(self, group: str, index: int | None = None) -> Path:
        """The file of a part; without an index, the folder of the group."""
        return self.work / group / ("" if index is None else f"{self.name(index)}.safetensors")

    def _record(self, index: int) -> Path:
        return self.work / "records" / f"{self.name(index)}.json"

    def _read(self, index: int) -> dict | None:
        path = self._record(index)
        try:
            record = read_sealed(path) or {}
            sound = all({"bytes", "sha256"} <= set(file) for file in record["files"].values())
            return record if sound and (index in self.whole or self.counts(index, record)) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also BrokenArtefact
            return None


def complete(work: Path, *, finished: Callable[[], bool], finish: Callable[[], None]) -> None:
    """Have one of all processes that call this do `finish`; the others wait for it. Like `SharedJob.run`."""
    SharedJob(work).run(finished=finished, finish=lambda _: finish())


def restored_or(folder: Path, made: str, make: Callable[[Callable[[], bool]], None]) -> tuple[dict, dict]:
    """The tensors and the record of an artefact; `make(finished)` makes it where it is missing or damaged.
    `made`: what that is called in messages, as 'fitted'.
    """
    if (before := stamp(folder)) is not None:
        try:
            artefact = load_artefact(folder)
            log.info("%s restored from %s", folder.name.rpartition("-")[0], folder)
            return artefact
        except BrokenArtefact as error:
            log.warning("%s again, because what was stored is damaged: %s", made, error)
    make(lambda: stamp(folder) not in (None, before))
    return load_artefact(folder)
