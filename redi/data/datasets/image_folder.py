"""Image files in a folder or a zip file."""

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from redi.data.datasets import EncodedImages, Split, numbered_classes, register
from redi.data.preprocessing import Preprocessing

# Pillow recognises these but decodes them with other programs, or not at all.
NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@register
class ImageFolder(EncodedImages):
    """Image files in a folder or a .zip, in the order of their names.

    Labels come from `dataset.json` at the root, as the EDM2 and REPA tools write it:
    `{"labels": [["00000/img00000000.png", 6], ...]}`, or `"labels": null` for unlabelled. Without that file
    each top-level folder is a class, empty ones too (sorted names -> 0, 1, ...; deeper files belong to their
    top-level folder). Images at the root alone are unlabelled: one class, all labels 0.
    Hidden files are ignored, and so is every file that is not an image by its name.

    Args:
        path: the folder or the zip file.
        preprocessing: default: sizes as stored.
        num_classes: the classes a model is built for; default: those found.
        split, held_out_fraction, split_seed: a part of that; see Dataset.
    """

    def __init__(
        self,
        *,
        path: str,
        preprocessing: Preprocessing | None = None,
        num_classes: int | None = None,
        split: Split = "all",
        held_out_fraction: float = 0.0,
        split_seed: int = 0,
    ):
        where = f"ImageFolder.path = {str(path)!r}"
        self.source = _open_source(Path(path).expanduser(), where)
        names = sorted(name for name in self.source.files if _is_image(name))
        if not names:
            raise ValueError(f"{where} holds no images; names must end as image files do (.jpg, .png, .webp, ...)")
        if "dataset.json" in self.source.files:
            labels, class_names = _labels_of_index(self.source.open("dataset.json"), names, where)
        else:
            labels, class_names = _labels_of_folders(names, self.source.folders, where)
        super().__init__(
            names=names,
            labels=labels,
            class_names=class_names,
            preprocessing=preprocessing,
            num_classes=num_classes,
            split=split,
            held_out_fraction=held_out_fraction,
            split_seed=split_seed,
        )

    def read(self, index: int) -> IO[bytes]:
        return self.source.open(self.source_names[index])

    def provenance(self) -> dict:
        """Without the path: a folder moved elsewhere is the same data set, and keeps what was computed from it."""
        digest = hashlib.sha256()
        for name in self.source_names:
            digest.update(f"{name}\0{self.source.files[name]}\0".encode(errors="surrogateescape"))
        return {
            "dataset": "ImageFolder",
            "num_files": len(self.source_names),
            "files": digest.hexdigest(),
            "preprocessing": self.preprocessing.provenance(),
        }


class _Folder:
    """Files of a folder by relative name, with what identifies each: size and time of change."""

    def __init__(self, root: Path, where: str):
        self.root = root.resolve()
        self.files: dict[str, tuple[int, ...]] = {}
        self.folders: set[str] = set()  # at the top level
        for folder, below, files in os.walk(self.root, onerror=_raise):
            here = Path(folder)
            below[:] = [name for name in below if not _is_hidden(name)]
            for name in below:
                if (here / name).is_symlink():
                    what = f"{self._name(here / name)} is a symbolic link to the folder {(here / name).resolve()}"
                    raise ValueError(f"{where}: {what}; such links are not followed: put the files themselves there")
            if here == self.root:
                self.folders.update(below)
            for name in files:
                if _is_image(name) or (name == "dataset.json" and here == self.root):
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
        return status.st_size, status.st_mtime_ns

    def open(self, name: str) -> IO[bytes]:
        return open(self.root / name, "rb")


class _Zip:
    """Files of a zip by name, with what identifies each: size and CRC.

    Each read opens the archive anew and goes straight to its member, so threads, forked workers and pickling
    share nothing. A ZipFile per thread would read the whole directory again in each: for ImageNet's 1.3 million
    files, several seconds and hundreds of megabytes per thread.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.files: dict[str, tuple[int, ...]] = {}
        self.folders: set[str] = set()
        self._places: dict[str, tuple[int, int, int, int]] = {}  # offset, stored size, method, flags
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                parts = member.filename.split("/")
                if any(_is_hidden(part) for part in parts):
                    continue
                if len(parts) > 1:
                    self.folders.add(parts[0])
                if _is_image(parts[-1]) or member.filename == "dataset.json":
                    self.files[member.filename] = member.file_size, member.CRC
                    place = member.header_offset, member.compress_size, member.compress_type, member.flag_bits
                    self._places[member.filename] = place

    def open(self, name: str) -> IO[bytes]:
        offset, stored_size, method, flags = self._places[name]
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("encrypted, or compressed with a method other than deflate: pack the zip anew")
        with open(self.path, "rb") as file:
            file.seek(offset)
            header = file.read(30)  # the local header; its last two fields are the lengths of what follows it
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            data = file.read(stored_size)
        if method == zipfile.ZIP_DEFLATED:  # no further than the size announced: a zip bomb stops there
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.files[name][0] + 1)
        if (len(data), zlib.crc32(data)) != self.files[name]:
            raise ValueError("the zip is damaged, or was replaced, here: size or CRC differ from its directory")
        return io.BytesIO(data)


def _open_source(path: Path, where: str) -> _Folder | _Zip:
    if not path.exists():
        raise ValueError(f"{where} does not exist (looked for {path.absolute()})")
    if path.is_dir():
        return _Folder(path, where)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{where} is neither a folder nor a whole zip file; other archives must be unpacked first")
    return _Zip(path)


def _labels_of_folders(names: list[str], folders: set[str], where: str) -> tuple[np.ndarray, list[str]]:
    """One class per top-level folder; or one class in all, for images at the root."""
    at_root = [name for name in names if "/" not in name]
    if len(at_root) == len(names):
        return np.zeros(len(names), dtype=np.int64), ["unlabelled"]
    if at_root:
        raise ValueError(
            f"{where} holds images both at the root ({_few(at_root)}) and in class folders ({_few(sorted(folders))}): "
            f"which class are the former? Move them into a folder, or list all labels in dataset.json"
        )
    class_names = sorted(folders)
    label_of = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of[PurePosixPath(name).parts[0]] for name in names]), class_names


def _labels_of_index(file: IO[bytes], names: list[str], where: str) -> tuple[np.ndarray, list[str]]:
    """What dataset.json says about each of `names`."""
    where = f"{where}: dataset.json"
    try:
        with file:
            pairs = json.load(file)["labels"]
        label_of = None if pairs is None else {name.replace("\\", "/"): label for name, label in pairs}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f'{where} must be {{"labels": [["file name", label], ...]}} or {{"labels": null}}') from cause
    if label_of is None:
        return np.zeros(len(names), dtype=np.int64), ["unlabelled"]
    if len(label_of) < len(pairs):
        raise ValueError(f"{where} lists {len(pairs) - len(label_of)} files more than once")
    absent = sorted(set(label_of) - set(names))
    if absent:
        raise ValueError(f"{where} lists {len(absent)} images that are not there: {_few(absent)}")
    unlisted = sorted(set(names) - set(label_of))
    if unlisted:
        raise ValueError(f"{where} gives no label for {len(unlisted)} images: {_few(unlisted)}")
    for name, label in label_of.items():
        if type(label) is not int or not 0 <= label < 2**63:
            raise ValueError(f"{where} gives {name} the label {label!r}; labels are single integers from 0 on")
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    return labels, numbered_classes(labels, where)


def _is_image(name: str) -> bool:
    """By extension; `Image.registered_extensions` holds those of all formats that Pillow knows."""
    kind = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    return kind in Image.OPEN and kind not in NOT_IMAGES and not _is_hidden(PurePosixPath(name).name)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _raise(error: OSError) -> None:
    raise error
