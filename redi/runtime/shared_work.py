"""Work divided over processes that share nothing but a folder: no process group, no network."""

import contextlib
import errno
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
    two do the same part: `do` and `finish` must write what they make atomically and the same each time. What the
    sleeper stumbles over once the others have finished and cleared `work` away is no error.

    Args:
        work: is made where it is missing, and deleted once all is finished.
        finished, is_done: read the file system; `finish`, `do` make them true. The last two are for parts only.

    Raises:
        OSError: of `do` and `finish`, as any error of theirs, unless all is finished nonetheless.
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
                    try:
                        do(part) if missing else finish()
                    except OSError:
                        if not finished():
                            raise
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
    """Who does what, as folders `<part>.holder` with one file each, whose name says who holds the part.

    Because the name is the holder's alone, taking over is one rename, which a single process can win, and neither it
    nor giving back can hit the lease of whoever was faster.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.seen: dict[str, tuple[tuple, float]] = {}  # part -> another's lease and mtime, and when first seen so

    @contextlib.contextmanager
    def take(self, part: str) -> Iterator[bool]:
        """Whether the part is this process's until the block ends."""
        mine = self._acquire(part)
        if mine is None:
            yield False
            return
        self.seen.pop(part, None)
        over = threading.Event()
        heart = threading.Thread(target=_beat, args=(mine, over), daemon=True, name="lease")
        heart.start()
        try:
            yield True
        finally:
            over.set()
            heart.join()
            mine.unlink(missing_ok=True)  # missing where another took this process for dead
            with contextlib.suppress(OSError):  # or is no longer empty
                mine.parent.rmdir()

    def _acquire(self, part: str) -> Path | None:
        place, name = self._place(part), _own_name()
        if (lease := _lease(place)) is not None:
            if not self._abandoned(part, lease):
                return None
            try:
                lease.rename(place / name)
            except FileNotFoundError:  # another was faster, or it was given back
                return None
            log.warning("taking over %s, which %s left unfinished", part, _described(lease))
            return place / name
        prepared = self.folder / f".{name}"
        try:
            prepared.mkdir()
            (prepared / name).touch()
            prepared.rename(place)  # onto nothing or an empty folder: fails where there is a lease
        except OSError as error:
            shutil.rmtree(prepared, ignore_errors=True)
            # Another was faster; or all is finished, and the folder is gone.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                raise
            return None
        return place / name

    def _abandoned(self, part: str, lease: Path) -> bool:
        try:
            state = lease.name, lease.stat().st_mtime_ns
        except FileNotFoundError:  # given back this moment
            return False
        if self.seen.get(part, (None,))[0] != state:  # by this machine's clock: those of others may differ
            self.seen[part] = state, time.monotonic()
        return _is_dead(lease) or time.monotonic() - self.seen[part][1] > LOST_SECONDS

    def holders(self) -> list[str]:
        """The leases of others, for people."""
        found = {part: _lease(self._place(part)) for part in sorted(self.seen)}
        return [f"{part} is done by {_described(lease)}" for part, lease in found.items() if lease]

    def _place(self, part: str) -> Path:
        return self.folder / f"{part}.holder"


def _lease(place: Path) -> Path | None:
    try:
        return next(place.iterdir(), None)
    except FileNotFoundError:
        return None


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # taken over; or a network file system that will be back
            os.utime(path)


def _own_name() -> str:
    """A new lease's name: '<unique>@<process id>@<namespace of process ids>@<host>'."""
    return "@".join((uuid.uuid4().hex, str(os.getpid()), _pid_namespace(), socket.gethostname()))


def _pid_namespace() -> str:
    """Process ids are comparable within it alone: containers of one machine may share its host name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return ""


def _described(lease: Path) -> str:
    _, pid, _, host = _fields(lease)
    return f"process {pid} on {host}"


def _fields(lease: Path) -> list[str]:
    fields = lease.name.split("@", 3)
    return fields if len(fields) == 4 and fields[1].isdecimal() else ["?"] * 4


def _is_dead(lease: Path) -> bool:
    """Whether a lease's process ran on this machine and does no longer: no need to wait then."""
    _, pid, namespace, host = _fields(lease)
    if (namespace, host) != (_pid_namespace(), socket.gethostname()) or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
