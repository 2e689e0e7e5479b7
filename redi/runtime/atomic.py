"""Files and folders that appear whole or not at all, and outlast a power cut."""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

LOCK = ".lock"  # in a folder that one process works in


@contextlib.contextmanager
def atomic_folder(folder: Path, needed_bytes: int = 0, shared: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    A folder that is there already is replaced; readers may miss it for a moment. What several processes may write at
    once, named by a hash of its contents, is `shared`: the folder of the first one stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes * 1.01:
        raise OSError(f"no space for {folder}: {needed_bytes / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free")
    temporary = _beside(folder, "partial")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _sync_file(path)
        _sync_entries(temporary)
        if not shared:
            replace_folder(temporary, folder)
        else:
            try:
                rename(temporary, folder)
            except OSError:
                if not folder.exists():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """A name in the same folder, unique over machines too: several may write to one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{what}")


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a folder in its place; one that is there already is deleted, once the new one stands."""
    before = _beside(folder, "replaced")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(before)
    try:
        rename(new, folder)
    except OSError:
        if before.exists():
            before.rename(folder)
        raise
    for old in folder.parent.glob(f".{folder.name}.*.replaced"):  # also of a process that was killed here
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside a file, which is synced and becomes the file when the block ends well."""
    temporary = _beside(path, "partial")
    try:
        yield temporary
        _sync_file(temporary)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file; `atomic_file` and `atomic_folder` force it to the disk. Raises OSError."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # it wraps the operating system's error
        raise OSError(f"could not write {path}: {error}") from None


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_entries(folder: Path) -> None:
    if os.name == "posix":  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that cannot
                raise
        finally:
            os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Puts a file or folder in its place, replacing a file, and forces that to the disk: it outlasts a power cut."""
    old.replace(new)
    _sync_entries(new.parent)


def write_json(path: Path, value) -> None:
    """Writes JSON atomically, readable by people; several processes may write one file at once. Raises OSError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: other processes read the old or the new one. Raises OSError."""
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        if error.filename is None:  # a full disk shows when a file is written, and then without its name
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def stamp(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from one that replaced it; None where there is none."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_mtime_ns, status.st_ino
    return None


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Holds the lock of a folder, which ends with the process. Raises ValueError where another process holds it."""
    try:
        lock = FileLock(run_dir / LOCK).acquire(timeout=1)  # `is_held` takes it for an instant
    except Timeout:
        raise ValueError(f"another process is training in {run_dir}: choose another --run_dir") from None
    with lock:
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # of somebody else, in a folder that this process cannot write to
        return False
