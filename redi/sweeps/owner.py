"""The lock of a sweep point: one process works on it; the others wait for it and log its process number."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from redi.runtime.atomic import LOCK, is_held, write_json
from redi.runtime.progress import duration

log = logging.getLogger("redi")

RECORD = ".running.json"


def works_elsewhere(folder: Path, logged: set[Path]) -> bool:
    """Return whether another process holds the lock of a point. Log which one, unless `folder` is in `logged`."""
    if not is_held(folder):
        return False
    if folder not in logged:
        logged.add(folder)
        process = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it has only just started, or just ended
            record = json.loads((folder / RECORD).read_text())
            process = f"process {record['pid']} on {record['host']}"
            process += f" (started {duration(round(time.time() - record['began']))} ago)"
        log.info("%s: waiting for %s; if that process hangs, end it with kill", folder.name, process)
    return True


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[bool]:
    """Hold the lock of a point, after waiting for it; yield whether another process held it."""
    waits = works_elsewhere(folder, set())
    with FileLock(folder / LOCK):
        write_json(folder / RECORD, {"pid": os.getpid(), "host": socket.gethostname(), "began": time.time()})
        try:
            yield waits
        finally:
            (folder / RECORD).unlink(missing_ok=True)
