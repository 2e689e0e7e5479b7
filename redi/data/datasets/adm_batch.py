"""Image batches in the .npz format of ADM's evaluation suite."""

import math
import struct
import threading
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from redi.data.datasets import Dataset, Split, numbered_classes, register
from redi.data.preprocessing import Preprocessing, check_pixels

# What zipfile, zlib and NumPy raise on damaged files; NotImplementedError and RecursionError are RuntimeErrors.
UNREADABLE = (ValueError, OSError, RuntimeError, EOFError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile)
UNREADABLE += (zlib.error, TypeError, SyntaxError, tokenize.TokenError)
MAX_UNPACKED = 2**28  # bytes of an array, from where on it must look like images
MAX_RATIO = 100  # deflate comes to 1,000 at most, and to some 10 for images of a few colours


@register
class AdmBatch(Dataset):
    """A reference or sample batch as guided-diffusion (Dhariwal and Nichol 2021) writes it: a .npz with the images as
    arr_0 (N, H, W, 3) uint8, and perhaps their labels as arr_1 (N,).

    Images that are stored uncompressed are mapped into memory and read as they are needed; compressed ones are held
    in memory as a whole. Without arr_1 they are unlabelled: one class, all labels 0. No pickle is ever loaded.

    Args:
        path: the file.
        preprocessing: default: sizes as stored.
        num_classes: the classes a model is built for; default: as many as the largest label needs.
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
        where = f"AdmBatch.path = {str(path)!r}"
        if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
            what = "is no Preprocessing: bind AdmBatch.preprocessing = @Preprocessing()"
            raise ValueError(f"AdmBatch.preprocessing = {preprocessing!r} {what}")
        self.preprocessing = preprocessing or Preprocessing()
        members = _members(Path(path).expanduser(), where)
        self.images = _Array(Path(path).expanduser().resolve(), members["arr_0"], where)
        if self.images.dtype != np.uint8 or len(self.images.shape) != 4 or self.images.shape[3] != 3:
            got = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"{where}: arr_0 holds {got}; images are uint8 (N, H, W, 3)")
        check_pixels(*self.images.shape[1:3])
        self.sums = {name: [info.CRC, info.file_size] for name, info in members.items() if name in ("arr_0", "arr_1")}
        labels, class_names = self._labels(members, where)
        super().__init__(
            names=[f"image {number:06d}" for number in range(len(labels))],
            labels=labels,
            class_names=class_names,
            num_classes=num_classes,
            split=split,
            held_out_fraction=held_out_fraction,
            split_seed=split_seed,
        )

    def _labels(self, members: dict[str, zipfile.ZipInfo], where: str) -> tuple[np.ndarray, list[str]]:
        count = self.images.shape[0]
        if "arr_1" not in members:
            return np.zeros(count, dtype=np.int64), ["unlabelled"]
        stored = _Array(self.images.path, members["arr_1"], where)
        if stored.dtype.kind not in "iu" or stored.shape != (count,):
            got = f"{stored.dtype} {stored.shape}"
            raise ValueError(f"{where}: arr_1 holds {got}; the labels of these images are whole numbers ({count},)")
        labels = np.array(stored.read(), dtype=np.int64)
        if labels.min(initial=0) < 0:
            raise ValueError(f"{where}: arr_1 holds the label {labels.min()}; labels count from 0")
        return labels, numbered_classes(labels, where)

    def load(self, index: int) -> np.ndarray:
        return self.preprocessing(Image.fromarray(np.ascontiguousarray(self.images.read()[index])))

    def inspect(self, index: int) -> tuple[int, int, str]:
        _, height, width, _ = self.images.shape
        return width, height, "RGB"

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        return self.preprocessing.output_size(width, height)

    def provenance(self) -> dict:
        """Without the path; the checksums are those of the archive's directory."""
        return {"dataset": "AdmBatch", "crc32_and_bytes": self.sums, "preprocessing": self.preprocessing.provenance()}


def _members(path: Path, where: str) -> dict[str, zipfile.ZipInfo]:
    """Array name -> entry of the archive's directory."""
    if not path.is_file():
        raise ValueError(f"{where} is not there, or no file (looked for {path.absolute()})")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except UNREADABLE as error:
        raise ValueError(f"{where} is no whole .npz file ({str(error)[:300]}): cut short, or of another kind") from None
    if "arr_0" not in members:
        held = ", ".join(sorted(members)) or "nothing"
        hint = "; stored statistics are no images" if {"mu", "sigma"} <= set(members) else ""
        raise ValueError(f"{where} holds no images: an ADM batch has arr_0, this file {held}{hint}")
    return members


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose last two fields are the lengths of what follows."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        return info.header_offset + 30 + sum(struct.unpack("<HH", file.read(30)[26:]))


_opening = threading.Lock()  # so that several threads do not each unpack it


class _Array:
    """One array of a .npz, opened when it is read, so that copies in other processes hold none of it."""

    def __init__(self, path: Path, info: zipfile.ZipInfo, where: str):
        self.path, self.name, self.where = path, info.filename, where
        self.mapped = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        try:
            with zipfile.ZipFile(path) as archive, archive.open(info) as member:
                major, _ = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                self.shape, self.fortran, self.dtype = read(member)
                header = member.tell()
        except UNREADABLE as error:
            raise ValueError(f"{where}: {self.name} cannot be read: {str(error)[:300]}") from None
        if self.dtype.hasobject:
            raise ValueError(f"{where}: {self.name} holds Python objects, whose pickles could run code: not loaded")
        self.offset = _start(path, info) + header
        expected = math.prod(self.shape) * self.dtype.itemsize
        if min(self.shape, default=0) < 0:
            raise ValueError(f"{where}: {self.name} is damaged: it claims the shape {self.shape}")
        if expected > MAX_UNPACKED and not self.mapped and expected > MAX_RATIO * info.compress_size:
            what = f"{expected:,} bytes of {info.compress_size:,} compressed ones"
            raise ValueError(f"{where}: {self.name} would unpack {what}, as no images do: refused")
        if info.file_size - header != expected or self.mapped and self.offset + expected > path.stat().st_size:
            what = f"{info.file_size - header:,} bytes instead of the {expected:,} of {self.shape}"
            raise ValueError(f"{where}: {self.name} is cut short or damaged: {what}")
        self._values: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """All of it; mapped into memory where it is stored uncompressed."""
        with _opening:
            if self._values is None:
                order = "F" if self.fortran else "C"
                if self.mapped and math.prod(self.shape):
                    self._values = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
                else:
                    self._values = self._unpacked()
            return self._values

    def _unpacked(self) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except UNREADABLE as error:
            raise ValueError(f"{self.where}: {self.name} cannot be read: {str(error)[:300]}") from None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_values": None}
