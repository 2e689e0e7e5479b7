"""Sources of image files, a folder or a zip file; links and names that lead out of them are refused."""

import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from redi.data.preprocessing import FORMATS, MAX_BYTES

LISTINGS = {"dataset.json", "metadata.jsonl", "metadata.csv"}  # files of labels; only dataset.json at the root is read
# Folders created by operating systems, archivers and storage devices.
SYSTEM = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information",
          "thumbs"}  # fmt: skip


def open_source(path: Path, where: str) -> "Folder | Zip":
    """Open a folder, a zip file, or a folder inside a zip file. Raises ValueError for other paths and unsafe names."""
    archive = next((parent for parent in (path, *path.parents) if parent.is_file()), path)
    if not archive.exists():
        raise ValueError(f"{where} does not exist (looked for {path.absolute()}); bind the path of the images")
    if path.is_dir():
        return Folder(path, where)
    try:
        if not archive.is_file() or not zipfile.is_zipfile(archive):
            raise ValueError(f"{where} is neither a folder nor a complete zip file; unpack other archives first")
        return Zip(archive, where, inside="" if path == archive else f"{path.relative_to(archive).as_posix()}/")
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not an intact zip file: {str(error)[:300]}") from None


class Source:
    """Image files by relative name.

    Attributes:
        files: {name: numbers that identify the content} of each image, and of a dataset.json at the root.
        folders: the top-level folders, including empty ones.
        listings: all files whose names are in LISTINGS.
    """

    root: Path | None = None  # the folder of the files; None for an archive

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, ...]] = {}
        self.folders: set[str] = set()
        self.listings: set[str] = set()
        self._left_out: dict[str, str] = {}  # ignored file or folder: its kind

    @property
    def left_out(self) -> dict[str, int]:
        """The number of ignored files by kind: the extension, 'hidden', or the name of a system folder."""
        return dict(sorted(Counter(self._left_out.values()).items()))

    def _takes(self, name: str) -> bool:
        """Return whether a file belongs to the data set; record the kind of other files."""
        parts = name.split("/")
        for depth, part in enumerate(parts, 1):
            if _is_hidden(part):
                self._left_out["/".join(parts[:depth])] = "hidden" if part.startswith(".") else part
                return False
        if parts[-1] in LISTINGS:
            self.listings.add(name)
            return name == "dataset.json"
        suffix = PurePosixPath(name).suffix.lower()
        if Image.registered_extensions().get(suffix) not in FORMATS:  # the content is checked when a file is read
            self._left_out[name] = suffix.encode(errors="backslashreplace").decode() or "without an ending"
            return False
        return True


class Folder(Source):
    """Files of a folder, identified by size and modification time."""

    def __init__(self, root: Path, where: str):
        super().__init__()
        self.root = self._root = root.resolve()
        for path, folders, files in os.walk(self._root, onerror=_raise):
            parent = Path(path)
            folders[:] = [name for name in folders if not _is_hidden(name) or self._takes(self._name(parent / name))]
            for folder in map(parent.joinpath, folders):
                if folder.is_symlink():
                    link = f"{self._name(folder)} is a symbolic link to the folder {folder.resolve()}"
                    raise ValueError(f"{where}: {link}, which is not followed: replace it by the files themselves")
            if parent == self._root:
                self.folders.update(folders)
            for name in files:
                if self._takes(self._name(parent / name)):
                    self.files[self._name(parent / name)] = self._identity(parent / name, where)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    def _identity(self, file: Path, where: str) -> tuple[int, ...]:
        if file.is_symlink():
            target, link = file.resolve(), f"{where}: {self._name(file)} is a symbolic link"
            if not target.is_relative_to(self._root):
                raise ValueError(f"{link} out of the folder, to {target}: replace it by a copy of the file")
            if not target.is_file():
                raise ValueError(f"{link} to {target}, which does not exist: delete the link")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            problem = f"{self._name(file)} is not a regular file, but a pipe, a socket or a device"
            raise ValueError(f"{where}: {problem}: remove it")
        return status.st_size, status.st_mtime_ns

    def open(self, name: str) -> IO[bytes]:
        """Open a file by its relative name."""
        return open(self._root / name, "rb")


class Zip(Source):
    """Files of a zip file, or of the folder `inside` it, identified by size and CRC.

    Each read opens the archive, because a ZipFile per thread would hold its directory, hundreds of MB for ImageNet.
    """

    def __init__(self, path: Path, where: str, inside: str = ""):
        super().__init__()
        self.path = path.resolve()
        self._members: dict[str, tuple[int, int, int, int]] = {}  # offset, stored size, method, flags
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _refuse_member(member, member.filename.split("/"), where)
                name = member.filename.removeprefix(inside)
                if not member.filename.startswith(inside) or not name:
                    continue
                top, slash, _ = name.partition("/")
                if slash and not _is_hidden(top):
                    self.folders.add(top)
                if not name.endswith("/") and self._takes(name):
                    if name in self.files:
                        raise ValueError(f"{where} contains {member.filename!r} twice: create the zip file again")
                    self.files[name] = member.file_size, member.CRC
                    location = member.header_offset, member.compress_size, member.compress_type, member.flag_bits
                    self._members[name] = location

    def open(self, name: str) -> IO[bytes]:
        """Read a member by its relative name and check its size and CRC. Raises ValueError on damage."""
        offset, stored_size, method, flags = self._members[name]
        if self.files[name][0] > MAX_BYTES or stored_size > MAX_BYTES:  # before reading or unpacking it
            raise ValueError(f"the zip directory gives a size of more than {MAX_BYTES:,} bytes")
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is encrypted or not compressed with deflate: create the zip file again")
        with open(self.path, "rb") as file:
            file.seek(max(offset, 0))
            header = file.read(30)  # the local header; its last two fields are the lengths of two further fields
            if offset < 0 or len(header) < 30:
                raise ValueError("the zip file is truncated, or its directory is damaged")
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            data = file.read(stored_size)
        if method == zipfile.ZIP_DEFLATED:  # unpack at most the recorded size, which stops a zip bomb
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.files[name][0] + 1)
            except zlib.error as error:
                raise ValueError(f"the zip file is damaged here: {error}") from None
        if (len(data), zlib.crc32(data)) != self.files[name]:
            raise ValueError("the zip file is damaged or was replaced: size or CRC differ from its directory")
        return io.BytesIO(data)


def _refuse_member(member: zipfile.ZipInfo, parts: list[str], where: str) -> None:
    """Refuse names and links that lead out of the archive, a sign of a hostile file, although nothing is unpacked."""
    if ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", parts[0]) or "\\" in member.filename:
        problem = f"contains the name {member.filename[:200]!r}, which leads out of the archive"
        raise ValueError(f"{where} {problem}: create the zip file again with relative names")
    if stat.S_ISLNK(member.external_attr >> 16):
        remedy = "which is not followed: replace it by the file itself"
        raise ValueError(f"{where}: {member.filename[:200]!r} is a symbolic link, {remedy}")


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part.lower() in SYSTEM


def _raise(error: OSError) -> None:
    raise error
