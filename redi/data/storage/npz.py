"""Arrays of .npz files that others wrote: checked before they are unpacked, and never a pickle."""

import math
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# What zipfile, zlib and NumPy raise on damaged files; NotImplementedError and RecursionError are RuntimeErrors.
UNREADABLE = (ValueError, OSError, RuntimeError, EOFError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile)
UNREADABLE += (zlib.error, TypeError, KeyError, SyntaxError, tokenize.TokenError)
MAX_UNPACKED = 2**28  # bytes of an array above which its compression is looked at
MAX_RATIO = 100  # deflate comes to 1,000 at most, and to some 10 for images of a few colours

_opening = threading.Lock()  # so that several threads do not each unpack an array


def npz_entries(path: Path, where: str) -> dict[str, zipfile.ZipInfo]:
    """Array name -> entry of the archive's directory. Raises ValueError where it is not intact or not of arrays."""
    with _explained(f"{where} is not an intact .npz file"), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names) or not all(name.endswith(".npy") for name in names):
            raise ValueError(f"not each of its members is an array of its own: {names[:8]}")
    return {entry.filename.removesuffix(".npy"): entry for entry in entries}


class NpzArray:
    """One array of a .npz, opened when it is read, so that copies in other processes hold none of it. Raises
    ValueError: a damaged header, Python objects, another length than the header says, or a zip bomb.
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
            raise ValueError(f"{where} holds Python objects, whose pickles could run code: not loaded")
        with open(path, "rb") as file:  # behind the local header, whose last two fields are lengths of what follows it
            file.seek(entry.header_offset)
            self.offset = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(30)[26:])) + header
        expected = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{where} is damaged: it claims the shape {self.shape}")
        if expected > MAX_UNPACKED and not self.mapped and expected > MAX_RATIO * entry.compress_size:
            what = f"{expected:,} bytes of {entry.compress_size:,} compressed ones"
            raise ValueError(f"{where} would unpack {what}, as no images do: refused")
        stored = entry.file_size - header
        if stored != expected or self.mapped and self.offset + expected > path.stat().st_size:
            what = f"{stored:,} bytes instead of the {expected:,} of {self.shape}"
            raise ValueError(f"{where} is cut short or damaged: {what}")
        self._values: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """All of it; mapped into memory, and its checksum not compared, where it is stored uncompressed."""
        with _opening:
            if self._values is None and self.mapped and math.prod(self.shape):
                order = "F" if self.fortran else "C"
                self._values = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
            elif self._values is None:
                self._values = self.unpack()
            return self._values

    def unpack(self) -> np.ndarray:
        """All of it, as a copy whose checksum was compared."""
        with self._opened() as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipExtFile]:
        with _explained(f"{self.where}: {self.name} cannot be read"), zipfile.ZipFile(self.path) as archive:
            with archive.open(self.name) as member:
                yield member

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_values": None}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{what}: {str(error)[:300]}") from None
