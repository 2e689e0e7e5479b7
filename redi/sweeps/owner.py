"""Which process works on a point: another one waits for it, and says for whom and how long."""

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


def works_elsewhere(folder: Path, known: set[Path]) -> bool:
    """Whether another process holds the point of this folder; the log says which, once for each of the `known`."""
    if not is_held(folder):
        return False
    if folder not in known:
        known.add(folder)
        process = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it has only just begun, or just ended
            record = json.loads((folder / RECORD).read_text())
            process = f"process {record['pid']} on {record['host']}"
            process += f", for {duration(round(time.time() - record['began']))},"
        log.info("%s: waiting, because %s works on it; end that one with kill if it is left over", folder.name, process)
    return True


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[bool]:
    """Hold a point while its work is done, once no other process does -> whether there was another one."""
    waits = works_elsewhere(folder, set())
    with FileLock(folder / LOCK):
        write_json(folder / RECORD, {"pid": os.getpid(), "host": socket.gethostname(), "began": time.time()})
        try:
            yield waits
        finally:
            (folder / RECORD).unlink(missing_ok=True)
