"""Whether a cache is as it was written: looked at once at every start, by all processes together."""

import json
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from redi.data.cache.cache import MANIFEST, read_manifest
from redi.runtime.atomic import rename, stamp, write_json
from redi.runtime.checksums import BrokenArtefact, sealed, sha256
from redi.runtime.progress import progress
from redi.runtime.shared_work import complete

log = logging.getLogger(__name__)

FRESH_SECONDS = 1800.0  # what was looked at since then counts: processes of one start do not begin at one moment


def verify_cache(folder: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Compares the SHA-256 of every shard with the manifest's; the shards are divided over the processes.

    Where some are damaged or missing, the cache becomes an unfinished one, of which `write_cache` encodes these again;
    where its manifest is, all of it, for then nothing says what the shards were.

    What was found whole in the last half hour, and was not written to since, is not read again.
    """
    check = _Check(Path(folder), rank)
    complete(
        check.work, list(check.shards), is_done=check.is_done, do=check.look, finished=check.finished,
        finish=check.finish, rank=rank, world_size=world_size,
    )  # fmt: skip


class _Check:
    """What `complete` is given to do: one part is one shard, and what was found of it lies in a small file."""

    def __init__(self, folder: Path, rank: int):
        self.folder, self.work = folder, folder.with_name(f".{folder.name}.check")
        self.verified = folder.with_name(f".{folder.name}.verified")
        self.stamp = stamp(folder)
        self.over, self.seen = False, set()  # what this process did counts for it, whatever the clocks say
        try:
            self.manifest: dict | None = read_manifest(folder / MANIFEST)
        except BrokenArtefact as error:
            log.warning("all is encoded again, for nothing says what it was: %s", error)
            self.manifest = None
        self.shards = {Path(shard["file"]).stem: shard for shard in self.manifest["shards"]} if self.manifest else {}
        self.state = {part: _state(folder / shard["file"]) for part, shard in self.shards.items()}
        self.bar = progress(total=len(self.shards), desc="verifying", unit="shard", disable=rank > 0)

    def finished(self) -> bool:
        if self.over or stamp(self.folder) != self.stamp:  # another process found damage, and maybe repaired it already
            return True
        found = _fresh(self.verified)
        return found is not None and self.manifest is not None and found.get("verified") == self._verified()

    def _verified(self) -> dict:
        return {"manifest": self.manifest["sha256"], "files": self.state}

    def is_done(self, part: str) -> bool:
        return part in self.seen or (_fresh(self._place(part)) or {}).get("file") == self.state[part]

    def look(self, part: str) -> None:
        record, path = self.shards[part], self.folder / self.shards[part]["file"]
        if stamp(self.folder) != self.stamp:
            return
        whole = path.exists() and path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]
        write_json(self._place(part), {"whole": whole, "file": self.state[part], "time": time.time()})
        self.seen.add(part)
        self.bar.update(len(self.seen) - self.bar.n)

    def finish(self) -> None:
        damaged = [part for part in self.shards if not (_read(self._place(part)) or {}).get("whole")]
        if damaged or self.manifest is None:
            if damaged:
                log.warning("encoding again what was damaged or missing of %s: %s", self.folder, ", ".join(damaged))
            self._unfinish(part for part in self.shards if part not in damaged)
        else:
            write_json(self.verified, {"verified": self._verified(), "time": time.time()})
        self.over = True
        self.bar.close()

    def _unfinish(self, good: Iterable[str]) -> None:
        """Makes the cache what `write_cache` leaves when it is interrupted: these parts are done."""
        work = self.folder.with_name(f".{self.folder.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        (work / "records").mkdir(parents=True)
        starts, first = {}, 0
        for part, shard in self.shards.items():
            starts[part], first = first, first + shard["rows"]
        for part in good:
            record = {"first": starts[part], "shard": self.shards[part], "tensors": self.manifest["tensors"]}
            write_json(work / "records" / f"{part}.json", sealed(record))
        rename(self.folder, work / "shards")

    def _place(self, part: str) -> Path:
        return self.work / f"{part}.json"


def _state(path: Path) -> list[int]:
    """What writing to a file changes; [] where it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _read(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _fresh(path: Path) -> dict | None:
    found = _read(path)
    when = found.get("time") if found else None
    return found if isinstance(when, int | float) and abs(time.time() - when) < FRESH_SECONDS else None
