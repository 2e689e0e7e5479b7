"""Where image files lie: a folder or a zip file, in which nothing leads elsewhere."""

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

LISTINGS = {"dataset.json", "metadata.jsonl", "metadata.csv"}  # what lists labels; only the first, at the root, is read
# Folders that an operating system, an archiver or a storage box makes beside the images.
SYSTEM = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information",
          "thumbs"}  # fmt: skip


def open_source(path: Path, where: str) -> "Folder | Zip":
    """Of a folder, a zip file, or a folder inside of a zip file. Raises ValueError: nothing of the kind is there, or
    something in it leads out of it.
    """
    archive = next((place for place in (path, *path.parents) if place.is_file()), path)
    if not archive.exists():
        what = "bind where the images are now"
        raise ValueError(f"{where} does not exist (looked for {path.absolute()}); {what}")
    if path.is_dir():
        return Folder(path, where)
    try:
        if not archive.is_file() or not zipfile.is_zipfile(archive):
            raise ValueError(f"{where} is neither a folder nor a whole zip file; other archives must be unpacked first")
        return Zip(archive, where, inside="" if path == archive else f"{path.relative_to(archive).as_posix()}/")
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is no intact zip file: {str(error)[:300]}") from None


class Source:
    """Images by relative name.

    Attributes:
        files: of each image, and of a dataset.json at the root, what identifies it.
        folders: those at the top level, empty ones too.
        listings: the files of the names in LISTINGS, wherever they lie.
        root: the folder that they lie in; None: in an archive.
    """

    def __init__(self, root: Path | None = None):
        self.root = root
        self.files: dict[str, tuple[int, ...]] = {}
        self.folders: set[str] = set()
        self.listings: set[str] = set()
        self._left_out: dict[str, str] = {}  # file or folder: of which kind

    @property
    def left_out(self) -> dict[str, int]:
        """How many files of each ending, system folders of each name, and hidden ones are left out."""
        return dict(sorted(Counter(self._left_out.values()).items()))

    def _takes(self, name: str) -> bool:
        """Whether the file belongs to the data set; notes what else it is."""
        parts = name.split("/")
        for depth, part in enumerate(parts, 1):
            if _is_hidden(part):
                self._left_out["/".join(parts[:depth])] = "hidden" if part.startswith(".") else part
                return False
        if parts[-1] in LISTINGS:
            self.listings.add(name)
            return name == "dataset.json"
        if not is_image(name):
            ending = PurePosixPath(name).suffix.lower().encode(errors="backslashreplace").decode()
            self._left_out[name] = ending or "without an ending"
            return False
        return True


class Folder(Source):
    """Files of a folder, identified by size and time of change."""

    def __init__(self, root: Path, where: str):
        super().__init__(root.resolve())
        for folder, below, files in os.walk(self.root, onerror=_raise):
            here = Path(folder)
            below[:] = [name for name in below if not _is_hidden(name) or self._takes(self._name(here / name))]
            for path in map(here.joinpath, below):
                if path.is_symlink():
                    what = f"{self._name(path)} is a symbolic link to the folder {path.resolve()}"
                    raise ValueError(f"{where}: {what}; such links are not followed: put the files themselves there")
            if here == self.root:
                self.folders.update(below)
            for name in files:
                if self._takes(self._name(here / name)):
                    self.files[self._name(here / name)] = self._identity(here / name, where)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _identity(self, file: Path, where: str) -> tuple[int, ...]:
        if file.is_symlink():
            target, what = file.resolve(), f"{where}: {self._name(file)} is a symbolic link"
            if not target.is_relative_to(self.root):
                raise ValueError(f"{what} out of the folder, to {target}: put a copy of the file there instead")
            if not target.is_file():
                raise ValueError(f"{what} to {target}, which is not there")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ValueError(f"{where}: {self._name(file)} is no plain file, but a pipe, a socket or a device")
        return status.st_size, status.st_mtime_ns

    def open(self, name: str) -> IO[bytes]:
        return open(self.root / name, "rb")


class Zip(Source):
    """Files of a zip, or of the folder `inside` of it, identified by size and CRC.

    Each read opens the archive again and goes straight to its member, so threads and processes share nothing. A ZipFile
    per thread would hold the whole directory: for ImageNet, hundreds of megabytes.
    """

    def __init__(self, path: Path, where: str, inside: str = ""):
        super().__init__()
        self.path = path.resolve()
        self._places: dict[str, tuple[int, int, int, int]] = {}  # offset, stored size, method, flags
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
                        raise ValueError(f"{where} holds {member.filename!r} twice: pack the zip anew")
                    self.files[name] = member.file_size, member.CRC
                    place = member.header_offset, member.compress_size, member.compress_type, member.flag_bits
                    self._places[name] = place

    def open(self, name: str) -> IO[bytes]:
        offset, stored_size, method, flags = self._places[name]
        if self.files[name][0] > MAX_BYTES or stored_size > MAX_BYTES:  # before so much is read, or unpacked
            raise ValueError(f"its directory announces more than {MAX_BYTES:,} bytes")
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed with a method other than deflate: pack the zip anew")
        with open(self.path, "rb") as file:
            file.seek(max(offset, 0))
            header = file.read(30)  # the local header; its last two fields are the lengths of what follows it
            if offset < 0 or len(header) < 30:
                raise ValueError("the zip is cut short, or its directory names places outside of it")
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            data = file.read(stored_size)
        if method == zipfile.ZIP_DEFLATED:  # no further than the size announced: a zip bomb stops there
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.files[name][0] + 1)
            except zlib.error as error:
                raise ValueError(f"the zip is damaged here: {error}") from None
        if (len(data), zlib.crc32(data)) != self.files[name]:
            raise ValueError("the zip is damaged, or was replaced, here: size or CRC differ from its directory")
        return io.BytesIO(data)


def _refuse_member(member: zipfile.ZipInfo, parts: list[str], where: str) -> None:
    """Nothing is ever unpacked; but such names say that the archive is hostile, or broken."""
    if ".." in parts or not parts[0] or re.match(r"[A-Za-z]:", parts[0]) or "\\" in member.filename:
        raise ValueError(f"{where} holds the name {member.filename[:200]!r}, which leads out of the archive: refused")
    if stat.S_ISLNK(member.external_attr >> 16):
        what = "such links are not followed: put the file itself there"
        raise ValueError(f"{where}: {member.filename[:200]!r} is a symbolic link; {what}")


def is_image(name: str) -> bool:
    """By extension; what is in the file is looked at when it is read."""
    kind = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    return kind in FORMATS and not _is_hidden(PurePosixPath(name).name)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part.lower() in SYSTEM


def _raise(error: OSError) -> None:
    raise error
