"""Create small hostile and damaged files, so that the repository stores none."""

import io
import json
import os
import pickle
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Code:
    """An object that creates the file `ran` when it is unpickled."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self):
        return os.system, (f"touch '{self.ran}'",)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def picture(side: int = 8, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"", *extra: tuple[bytes, bytes]) -> bytes:
    """A 1-bit grey PNG whose header claims any size; `data` are its compressed rows."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), *extra, (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def white_png(width: int, height: int) -> bytes:
    """A complete PNG of few bytes."""
    return png(width, height, zlib.compress((b"\0" + b"\xff" * ((width + 7) // 8)) * height))


def postscript(ran: Path) -> bytes:
    """An EPS file, which Pillow would pass to Ghostscript."""
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n({ran}) (w) file closefile\n".encode()


def scans(count: int) -> bytes:
    """A progressive JPEG with many copies of its last scan."""
    whole = picture(64, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def archive(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            file.writestr(name, data)
    return path


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry, target.encode()


def announcing(path: Path, *, stored: int | None = None, unpacked: int | None = None) -> Path:
    """The archive with other sizes of its last member in the directory."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    if stored is not None:
        data[place + 20 : place + 24] = struct.pack("<I", stored)
    if unpacked is not None:
        data[place + 24 : place + 28] = struct.pack("<I", unpacked)
    path.write_bytes(data)
    return path


def zeros(megabytes: int) -> bytes:
    """This number of megabytes, compressed like a zip member."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(squeezer.compress(bytes(2**20)) for _ in range(megabytes)) + squeezer.flush()


def tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data) if info.isreg() else 0
            file.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def npy(shape: str, data: bytes = b"", descr: str = "'|u1'") -> bytes:
    """An array with this text as its header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(path: Path, method: int = zipfile.ZIP_STORED, **arrays) -> Path:
    def raw(value) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value, allow_pickle=True)
        return buffer.getvalue()

    content = [(f"{name}.npy", v if isinstance(v, bytes) else raw(v)) for name, v in arrays.items()]
    return archive(path, *content, method=method)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header; bytes are used unchanged."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list, start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def torch_file(path: Path, value: object, **options) -> Path:
    torch.save(value, path, pickle_module=pickle, **options)
    return path


def repacked(path: Path, method: int) -> Path:
    """The archive, compressed."""
    with zipfile.ZipFile(path) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    return archive(path, *members, method=method)
