"""Read arrays from .npz files of other programs: checked before they are unpacked, never through pickle."""

import math
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np

# Raised by zipfile, zlib and NumPy on damaged files; NotImplementedError and RecursionError are RuntimeErrors.
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, OSError, RuntimeError, EOFError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
    zlib.error, TypeError, KeyError, SyntaxError, tokenize.TokenError,
)  # fmt: skip
MAX_UNPACKED = 2**28  # bytes of an array up to which any compression ratio is accepted
MAX_RATIO = 100  # of larger arrays; images with few colours reach about 10, and deflate at most 1,000

_lock = threading.Lock()  # so that an array is unpacked by one thread only


def npz_entries(path: Path, where: str) -> dict[str, zipfile.ZipInfo]:
    """Return {array name: directory entry} of a .npz file. Raises ValueError if it is damaged or has other members."""
    with _explained(f"{where} is not an intact .npz file"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError(f"its members must be arrays (.npy) with different names, not {names[:8]}")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries}


class NpzArray:
    """An array in a .npz file. It is loaded when it is read, and pickling the object does not copy the values.

    Raises ValueError for a damaged header, Python objects, another length than the header states, or a zip bomb.
    """

    def __init__(self, path: Path, entry: zipfile.ZipInfo, where: str):
        self.path, self.name, self.where = path, entry.filename, where
        self.mapped = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        with self._opened() as member:
            major, _ = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            self.shape, self.fortran, self.dtype = read(member)
            header = member.tell()
        where = f"{where}: {self.name}"
        if self.dtype.hasobject:
            raise ValueError(f"{where} has Python objects, whose pickles could run code; only numbers are loaded")
        with open(path, "rb") as file:  # the last two fields of the local header are the lengths of two further fields
            file.seek(entry.header_offset)
            self.offset = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(30)[26:])) + header
        expected = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{where} is damaged: its shape is {self.shape}")
        if expected > MAX_UNPACKED and not self.mapped and expected > MAX_RATIO * entry.compress_size:
            sizes = f"{entry.compress_size:,} to {expected:,} bytes"
            raise ValueError(f"{where} would unpack from {sizes}; at most a factor of {MAX_RATIO} is allowed")
        stored = entry.file_size - header
        if stored != expected or self.mapped and self.offset + expected > path.stat().st_size:
            sizes = f"{stored:,} bytes instead of {expected:,} for the shape {self.shape}"
            raise ValueError(f"{where} is truncated or damaged: {sizes}")
        self._values: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """Return the array; uncompressed arrays are memory-mapped without checking their checksum."""
        with _lock:
            if self._values is None and self.mapped and 0 not in self.shape:  # an empty file cannot be mapped
                order: Literal["F", "C"] = "F" if self.fortran else "C"
                self._values = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
            elif self._values is None:
                self._values = self.unpack()
            return self._values

    def unpack(self) -> np.ndarray:
        """Return a copy of the array in memory; its checksum is verified."""
        with self._opened() as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with _explained(f"{self.where}: {self.name} cannot be read"), zipfile.ZipFile(self.path) as archive:
            with archive.open(self.name) as member:
                yield member

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_values": None}


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{problem}: {str(error)[:300]}") from None
