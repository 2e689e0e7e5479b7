"""Work divided over processes that share nothing but a folder: no process group, no network."""

import contextlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0  # a lease is touched so often while its holder lives
LOST_SECONDS = 60.0  # after so long without a touch, the holder is taken for dead and its part is done by another
POLL_SECONDS = 2.0  # waiting processes look again after at most so long
FINISH = "finish"


def process_rank(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """-> rank and world size: as given, else torchrun's RANK and WORLD_SIZE, else Slurm's, else 0 of 1.

    Raises:
        ValueError: a rank outside [0, world size), or only one of the two.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank = {rank} and world_size = {world_size}: give both, or neither")
    where = "rank, world_size"
    if rank is None:
        rank, world_size = 0, 1
        for where in ("RANK, WORLD_SIZE", "SLURM_PROCID, SLURM_NTASKS"):
            found = [os.environ.get(name, "") for name in where.split(", ")]
            if all(found):
                try:
                    rank, world_size = map(int, found)
                except ValueError:
                    raise ValueError(f"the environment has {where} = {', '.join(found)}: whole numbers") from None
                break
    if not 0 <= rank < world_size:
        raise ValueError(f"{where} = {rank}, {world_size}: the rank lies outside [0, {world_size})")
    return rank, world_size


def complete(
    work: Path,
    parts: Sequence[str],
    *,
    finished: Callable[[], bool],
    finish: Callable[[], None],
    is_done: Callable[[str], bool] | None = None,
    do: Callable[[str], None] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Does every part and then `finish`, together with all processes that call this with the same folder.

    Part i belongs to rank i modulo the world size, which does it unless another has begun to. A process that is
    through with its own goes on with those that nobody works on, so a rank that is slow, lost or never started
    delays the others and stops nothing. `finish` is done by one process; it may find parts damaged and make them
    undone, then they are done again. All return once it is finished.

    What holds a part is a lease: a file in `work`, touched every HEARTBEAT_SECONDS. A lease that stays untouched for
    LOST_SECONDS, or whose process is known to be dead, is taken over. If a process that was only asleep wakes up,
    two do the same part: `do` and `finish` must write what they make atomically and the same each time.

    Args:
        work: is made where it is missing, and deleted once all is finished.
        finished, is_done: read the file system; `finish`, `do` make them true. The last two are for parts only.
    """
    order = [part for i, part in enumerate(parts) if i % world_size == rank]
    order += [part for i, part in enumerate(parts) if i % world_size != rank]
    leases, pause, quiet_until = _Leases(work), 0.05, 0.0
    while not finished():
        work.mkdir(parents=True, exist_ok=True)
        missing, worked = [part for part in order if not is_done(part)], False
        for part in missing or [FINISH]:
            with leases.take(part) as held:
                if held and not finished() and not (missing and is_done(part)):
                    do(part) if missing else finish()
                    worked = True
        if worked:
            pause = 0.05
            continue
        if time.monotonic() > quiet_until and leases.seen:
            log.info("waiting for other processes: %s", ", ".join(leases.holders()[:4]))
            quiet_until = time.monotonic() + 30
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    shutil.rmtree(work, ignore_errors=True)


class _Leases:
    """Who does what, as files `<part>.lease` in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seen: dict[str, tuple[int, float]] = {}  # part -> mtime of another's lease, and when it was first seen

    @contextlib.contextmanager
    def take(self, part: str) -> Iterator[bool]:
        """Whether the part is this process's until the block ends."""
        path, token = self.folder / f"{part}.lease", uuid.uuid4().hex
        if not self._create(path, part, token):
            yield False
            return
        self.seen.pop(part, None)
        over = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, over), daemon=True, name="lease")
        heart.start()
        try:
            yield True
        finally:
            over.set()
            heart.join()
            if _read(path).get("token") == token:  # not another's, who took this process for dead
                path.unlink(missing_ok=True)

    def _create(self, path: Path, part: str, token: str) -> bool:
        try:
            with open(path, "x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid(), "token": token}, file)
            return True
        except FileNotFoundError:  # all is finished, and the folder is gone
            return False
        except FileExistsError:
            if self._abandoned(path, part):
                log.warning("taking over %s, which %s left unfinished", part, _holder(_read(path)))
                path.unlink(missing_ok=True)
                return self._create(path, part, token)
            return False

    def _abandoned(self, path: Path, part: str) -> bool:
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:  # given back this moment
            return False
        if self.seen.get(part, (None,))[0] != touched:  # by this machine's clock: those of others may differ
            self.seen[part] = touched, time.monotonic()
        return _is_dead(_read(path)) or time.monotonic() - self.seen[part][1] > LOST_SECONDS

    def holders(self) -> list[str]:
        """The leases of others, for people."""
        found = {part: _read(self.folder / f"{part}.lease") for part in sorted(self.seen)}
        return [f"{part} is done by {_holder(record)}" for part, record in found.items() if record]


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # taken over; or a network file system that will be back
            os.utime(path)


def _read(path: Path) -> dict:
    """What a lease says; nothing where it is gone or was not written to the end."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _holder(record: dict) -> str:
    return f"process {record.get('pid', '?')} on {record.get('host', '?')}"


def _is_dead(record: dict) -> bool:
    """Whether a lease's process ran on this machine and does no longer: no need to wait then."""
    if record.get("host") != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
