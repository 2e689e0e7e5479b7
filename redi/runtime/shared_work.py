"""Divide work over any number of processes through a shared folder, without a process group or a network."""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from redi.runtime.artefact import RECORD, load_artefact, write_record
from redi.runtime.atomic import atomic_file, replace_folder, save_tensors, stamp, write_json
from redi.runtime.checksums import BrokenArtefact, altered_files, read_sealed, sealed, sha256
from redi.runtime.progress import progress, tqdm

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # maximum interval at which a waiting process checks for free parts


class SharedJob:
    """A job of numbered parts. Free processes take the next part, every part is stored, and one process finishes.

    A process locks the part it works on. The operating system releases the lock when the process ends for any reason,
    and another process takes the part. A part consists of `<work>/<group>/<name>.safetensors` for every group of
    tensors, and `<work>/records/<name>.json` with their checksums, which is written last. An interrupted job resumes
    from the stored parts.

    Args:
        work: a folder used by this job only; deleted when the job is finished.
        sizes: the number of images in each part.
        kind: parts are named '<kind>-00000', '<kind>-00001', ...
        counts: returns whether a stored record belongs to this job; default: every record does.
    """

    def __init__(
        self, work: Path, sizes: Sequence[int] = (), kind: str = "part",
        counts: Callable[[int, dict], bool] = lambda index, record: True,
    ):  # fmt: skip
        self.work, self.sizes, self.kind, self.counts = work, list(sizes), kind, counts
        self.verified: set[int] = set()  # parts that this process stored, which are not verified again
        self.done = [0] * len(self.sizes)  # the number of finished images in each part, from all processes
        self.bar = tqdm(disable=True)

    def run(
        self, *, finished: Callable[[], bool], finish: Callable[[list[dict]], None],
        do: Callable[[int], None] | None = None, rank: int = 0, world_size: int = 1, desc: str = "", unit: str = "img",
    ) -> None:  # fmt: skip
        """Process all parts and then `finish`, shared with every process that runs this job; return when it is done.

        Part i belongs to rank i modulo the world size. A process that has finished its own parts takes parts that
        nobody is working on, so a slow, lost or missing rank never blocks the job. Parts that are damaged when the job
        finishes are processed again.

        Args:
            finished: returns whether the job is finished, by any process.
            finish: receives the records of all parts.
            do: computes and stores a part; must be deterministic. Not needed without parts.
        """
        order = sorted(range(len(self.sizes)), key=lambda i: i % world_size != rank)
        with progress(total=sum(self.sizes), desc=desc, unit=unit, disable=rank > 0 or not order) as self.bar:
            if num_done := len(order) - len(self._missing(order)):
                log.info("%s: %d of %d parts already done", desc, num_done, len(order))
            self.bar.initial = self.bar.n  # exclude the parts already done from the speed
            pause, quiet_until = 0.05, time.monotonic() + 1
            while not finished():
                self.work.mkdir(parents=True, exist_ok=True)
                missing = self._missing(order)
                tasks: list[int | None] = [*missing] or [None]  # None: finish the job
                busy = []
                for index in tasks:
                    name = "finish" if index is None else self.name(index)
                    with self._locked(name) as locked:
                        if not locked:
                            busy.append(name)
                        elif finished():
                            continue
                        elif index is None:
                            if (records := self._records()) is not None:
                                finish(records)
                        elif not self._is_done(index):
                            assert do is not None  # a job with parts
                            do(index)
                if len(busy) < len(tasks):
                    pause = 0.05
                    continue
                if time.monotonic() > quiet_until:
                    log.info("waiting for other processes that are working on %s", ", ".join(busy[:4]))
                    quiet_until = time.monotonic() + 30
                time.sleep(pause)
                pause = min(2 * pause, POLL_SECONDS)
        shutil.rmtree(self.work, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Try to hold a lock until the block ends; yield whether this process holds it."""
        lock = FileLock(self.work / f"{name}.lock", blocking=False)
        with contextlib.suppress(Timeout, FileNotFoundError):  # another process holds it, or has finished the job
            lock.acquire()
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _missing(self, order: Sequence[int]) -> list[int]:
        return [index for index in order if not self._is_done(index)]

    def _is_done(self, index: int) -> bool:
        if is_done := self._record(index).exists():
            self.count(index, self.sizes[index])
        return is_done

    def count(self, index: int, num_images: int) -> None:
        """Show in the progress bar that `num_images` images of a part are done."""
        if self.done[index] != num_images:
            self.done[index] = num_images
            self.bar.update(sum(self.done) - self.bar.n)

    def store(self, index: int, groups: Mapping[str, Mapping[str, Tensor]], record: Mapping = {}) -> None:
        """Store the tensors of every group, and then the record. Raises OSError if the disk is full."""
        size = sum(tensor.nbytes for tensors in groups.values() for tensor in tensors.values())
        self.require_space(size / self.sizes[index], "free disk space and rerun: finished parts are kept")
        files = {}
        for group, tensors in groups.items():
            path = self.path(group, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                save_tensors(temporary, tensors)
                files[group] = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
        self.store_record(index, {"files": files, **record})
        self.verified.add(index)
        self.count(index, self.sizes[index])

    def store_record(self, index: int, record: Mapping) -> None:
        """Mark a part as stored. `record` contains {"files": {group: {"bytes", "sha256"}}}."""
        self._record(index).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._record(index), sealed(record))

    def require_space(self, bytes_per_image: float, remedy: str) -> None:
        """Raise OSError if the disk has too little space for all missing parts."""
        needed = bytes_per_image * sum(self.sizes[index] for index in self._missing(range(len(self.sizes))))
        if (free := shutil.disk_usage(self.work).free) < needed:
            sizes = f"{needed / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free"
            raise OSError(f"not enough disk space for {self.work}: {sizes}; {remedy}")

    def _records(self) -> list[dict] | None:
        """Return the records of all parts in order; if parts are damaged, mark them as missing and return None."""
        records = {i: record for i in range(len(self.sizes)) if (record := self._read(i)) is not None}
        others = [i for i in records if i not in self.verified]
        expected = {self.path(group, i): (i, file) for i in others for group, file in records[i]["files"].items()}
        altered = altered_files({path: file["sha256"] for path, (_, file) in expected.items()})
        damaged = {*range(len(self.sizes))} - {*records} | {expected[path][0] for path in altered}
        if not damaged:
            return [*records.values()]
        names = ", ".join(self.name(index) for index in sorted(damaged))
        log.warning("regenerating damaged or outdated parts in %s: %s", self.work, names)
        for index in damaged:
            self.verified.discard(index)
            self._record(index).unlink(missing_ok=True)
        return None

    def assemble_artefact(self, group: str, folder: Path, record: Mapping, records: Sequence[dict]) -> None:
        """Assemble a group as an artefact: write record.json with the files in `records`, then call `assemble`."""
        files = {self.path(group, index).name: part["files"][group] for index, part in enumerate(records)}
        write_record(self.path(group), {**record, "files": files})
        self.assemble(group, folder, {RECORD})

    def assemble(self, group: str, folder: Path, others: Collection[str]) -> None:
        """Move the parts of a group and the files `others` to `folder`; replace an existing folder."""
        names = {self.path(group, index).name for index in range(len(self.sizes))}.union(others)
        for path in self.path(group).iterdir():
            if path.name not in names:  # from an interrupted job with other parts, or a killed process
                path.unlink()
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(self.path(group), folder)

    def name(self, index: int) -> str:
        """Return the name of a part, such as 'part-00003'."""
        return f"{self.kind}-{index:05d}"

    def path(self, group: str, index: int | None = None) -> Path:
        """Return the file of a part in a group, or without `index` the folder of the group."""
        return self.work / group / ("" if index is None else f"{self.name(index)}.safetensors")

    def _record(self, index: int) -> Path:
        return self.work / "records" / f"{self.name(index)}.json"

    def _read(self, index: int) -> dict | None:
        path = self._record(index)
        try:
            record = read_sealed(path) or {}
            valid = all({"bytes", "sha256"} <= set(file) for file in record["files"].values())
            return record if valid and (index in self.verified or self.counts(index, record)) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # BrokenArtefact is a ValueError
            return None


def complete(work: Path, *, finished: Callable[[], bool], finish: Callable[[], None]) -> None:
    """Run `finish` in one of the processes that call this function; the others wait for it. See `SharedJob.run`."""
    SharedJob(work).run(finished=finished, finish=lambda _: finish())


def load_or_create(folder: Path, verb: str, create: Callable[[Callable[[], bool]], None]) -> tuple[dict, dict]:
    """Load an artefact's tensors and record; `create(finished)` it if missing or damaged. `verb` is for the log."""
    if (before := stamp(folder)) is not None:
        try:
            artefact = load_artefact(folder)
            log.info("loaded %s from %s", folder.name.rpartition("-")[0], folder)
            return artefact
        except BrokenArtefact as error:
            log.warning("%s again, because the stored result is damaged: %s", verb, error)
    create(lambda: stamp(folder) not in (None, before))
    return load_artefact(folder)
