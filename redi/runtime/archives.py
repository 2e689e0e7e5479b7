"""Zip archives of `torch.save`, from people who are not trusted; see `pickles`."""

import io
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

from redi.runtime.pickles import read_pickle

MAX_BYTES = 2**28  # of a file; published statistics take 3.5 MB at 768 components, and grow with the square
MAX_ENTRIES = 10_000


def read_torch_archive(path: str | Path, *, records: Collection[str] = ()) -> object:
    """What `torch.save` wrote, without executing anything: see `read_pickle` for what it can be; tensors are arrays.

    Raises:
        ValueError: missing, no such archive, damaged, larger than it says, or in need of anything else; says what.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing or no file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes: more than {MAX_BYTES} are not read")
    try:
        entries = _entries(path.read_bytes())
        root = next(iter(entries)).split("/")[0]
        if entries.get(f"{root}/byteorder", b"little") != b"little":
            raise ValueError("its tensors are big-endian")
        pickled = entries[f"{root}/data.pkl"]
        return read_pickle(pickled, records=records, storage=lambda key: entries[f"{root}/data/{key}"])
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def check_unpacked_size(path: Path) -> None:
    """Raises ValueError where a zip archive would unpack to more than it has: torch.save compresses nothing.

    Of archives of any size, of which only the directory is read; other files pass.
    """
    try:
        if not zipfile.is_zipfile(path):  # which on some damage raises
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # zipfile raises a dozen kinds on damaged input
        raise ValueError(f"no intact zip archive ({type(error).__name__}: {str(error)[:200]})") from None
    if unpacked > path.stat().st_size:
        raise ValueError(f"its entries are larger than the archive: {unpacked:,} bytes")


def check_tensors(tensors: Iterable[Tensor], num_bytes: int) -> None:
    """Raises ValueError where a tensor of a file of `num_bytes` is none that takes so many bytes or fewer.

    Strides of 0 make a tensor of any size of one number, and sparse ones say their size alone: whoever copies them to
    plain memory runs out of it.
    """
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"a tensor that is {tensor.layout} on {tensor.device}, and no plain one")
        if tensor.numel() * tensor.element_size() > num_bytes:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)}, which is larger than the file")


def _entries(data: bytes) -> dict[str, bytes]:
    """The files of a zip archive that are what its directory says, none of them compressed."""
    if data.count(b"PK\x01\x02") > MAX_ENTRIES:  # before zipfile makes an object of each
        raise ValueError(f"more than {MAX_ENTRIES} entries")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        found = archive.infolist()
        names = [entry.filename for entry in found]
        roots = {name.split("/")[0] for name in names}
        if len(set(names)) < len(names) or len(roots) != 1 or any({"..", ""} & set(n.split("/")) for n in names):
            raise ValueError(f"an archive of torch.save is one folder, this one has {[n[:60] for n in names[:8]]}")
        if names.count(f"{roots.pop()}/data.pkl") != 1:
            raise ValueError("there is no data.pkl in it")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in found):
            raise ValueError("torch.save neither compresses nor encrypts")
        if sum(entry.file_size for entry in found) > len(data):
            raise ValueError("its entries are larger than the archive")
        return {name: archive.read(name) for name in names}
    except ValueError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged input
        raise ValueError(f"no intact zip archive ({type(error).__name__}: {str(error)[:200]})") from None
