"""Which process works on a point: another one waits for it, and says for whom and how long."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from redi.pages.sweep_results import read_result
from redi.runtime.atomic import write_json
from redi.runtime.progress import duration

log = logging.getLogger("redi")

LOCK, RECORD = ".running", ".running.json"
SAY_AGAIN_SECONDS = 60.0


class Others:
    """Processes of another sweep, or left over from an earlier one, that work on points of this one."""

    def __init__(self):
        self.quiet_until: dict[Path, float] = {}

    def work_on(self, folder: Path) -> bool:
        """Whether one holds the point of this folder, of which the log says every minute who. The lock of a process
        ends with it, however it ends."""
        if not (folder / LOCK).exists():
            return False
        with contextlib.suppress(Timeout), FileLock(folder / LOCK, blocking=False):
            return False
        if time.monotonic() > self.quiet_until.get(folder, 0.0):
            _say(folder)
            self.quiet_until[folder] = time.monotonic() + SAY_AGAIN_SECONDS
        return True

    def finished(self, folder: Path) -> bool:
        """Whether one that was waited for has done the point."""
        return folder in self.quiet_until and read_result(folder) is not None


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[bool]:
    """Hold a point while its work is done, once no other process does -> whether there was another one."""
    lock, waited = FileLock(folder / LOCK), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SAY_AGAIN_SECONDS if waited else 1.0)
        except Timeout:
            _say(folder)
            waited = True
    try:
        write_json(folder / RECORD, {"pid": os.getpid(), "host": socket.gethostname(), "began": time.time()})
        yield waited
    finally:
        (folder / RECORD).unlink(missing_ok=True)
        lock.release()


def _say(folder: Path) -> None:
    process = "another process"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it has only just begun, or just ended
        record = json.loads((folder / RECORD).read_text())
        process = f"process {record['pid']} on {record['host']}"
        process += f", for {duration(round(time.time() - record['began']))},"
    log.info("%s: waiting, because %s works on it; end that one with kill if it is left over", folder.name, process)
