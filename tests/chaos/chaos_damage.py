"""What happens to files: bits flip, ends are missing, contents are gone, disks are full."""

import os
import random
import shutil
from pathlib import Path

KINDS = ("bit flip", "truncation", "emptied file", "missing file")


def damage(path: Path, kind: str, generator: random.Random) -> None:
    """Does one of KINDS to a file, in place."""
    content = bytearray(path.read_bytes())
    if kind == "bit flip":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif kind == "truncation":
        del content[generator.randrange(1, len(content)) :]
    elif kind == "emptied file":
        content.clear()
    elif kind == "missing file":
        path.unlink()
        return
    else:
        raise ValueError(f"{kind!r} is none of {KINDS}")
    path.write_bytes(content)


def fill(folder: Path, free_bytes: int) -> Path:
    """Writes a file that leaves so much of the file system -> its path."""
    path = folder / "ballast"
    size = shutil.disk_usage(folder).free - free_bytes
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return path
