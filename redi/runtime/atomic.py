"""Write files and folders atomically, synced to disk so that they survive a power failure."""

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

LOCK = ".lock"  # the lock file of a folder that only one process may use


@contextlib.contextmanager
def atomic_folder(folder: Path, needed_bytes: int = 0, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` if the block succeeds and is deleted if it fails.

    An existing folder is replaced; readers may find it missing for a moment.

    Args:
        needed_bytes: the disk space required; OSError is raised if there is less.
        shared: several processes may write this folder at once, with equal content; the first one is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes * 1.01:
        sizes = f"{needed_bytes / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free"
        raise OSError(f"not enough disk space for {folder}: {sizes}")
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


def _beside(path: Path, suffix: str) -> Path:
    """Return a new hidden name in the same folder, unique across all machines that share the file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}")


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; delete an existing folder afterwards, or restore it if the rename fails."""
    old = _beside(folder, "replaced")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        rename(new, folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    for leftover in folder.parent.glob(f".{folder.name}.*.replaced"):  # also those of processes killed here
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it is synced and renamed to `path` if the block succeeds."""
    temporary = _beside(path, "partial")
    try:
        yield temporary
        _sync_file(temporary)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; call it inside `atomic_file` or `atomic_folder`, which sync it. Raises OSError."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # wraps the operating system's error
        raise OSError(f"could not write {path}: {error}") from None


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_entries(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
                raise
        finally:
            os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder and sync the parent folder; an existing file is replaced."""
    old.replace(new)
    _sync_entries(new.parent)


def write_json(path: Path, value) -> None:
    """Write indented JSON atomically; several processes may write the same file at once. Raises OSError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: other processes read the old or the new content. Raises OSError."""
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        if error.filename is None:  # the error of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def stamp(folder: Path) -> tuple[int, int] | None:
    """Return a value that changes when the folder is replaced; None if it does not exist."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_mtime_ns, status.st_ino
    return None


@contextlib.contextmanager
def only_process(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system releases when the process ends. Raises ValueError if it is held."""
    try:
        lock = FileLock(run_dir / LOCK).acquire(timeout=1)  # `is_held` may hold it for an instant
    except Timeout:
        raise ValueError(f"another process is training in {run_dir}: choose another --run_dir") from None
    with lock:
        yield


def is_held(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # the folder belongs to another user and is not writable
        return False
