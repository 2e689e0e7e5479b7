import argparse
import io
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from redi.models.published.file import read_published
from redi.runtime.weights_files import read_weights_file


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_truncated_file_is_named(tmp_path, suffix, share):
    path, tensors = tmp_path / f"x{suffix}", {"a": torch.randn(1000)}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="^is truncated.*download it again"):
        read_weights_file(path)


class Harmful:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_with_code_in_it_is_refused_unread(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's default as it was before 2.6
    torch.save({"a": Harmful()}, tmp_path / "new.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
    for name in ("new.bin", "old.bin"):
        with pytest.raises(ValueError, match="besides tensors it contains .*print, and loading such") as error:
            read_weights_file(tmp_path / name)
        assert "weights_only" not in str(error.value) and "add_safe_globals" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_errors_of_the_system_are_not_blamed_on_the_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_weights_file(tmp_path / "nowhere.bin")


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(*entries: tuple[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # names that occur twice
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


PICKLE = pickle.dumps({"a": 1}, protocol=2)
TENSOR = torch.arange(6.0).view(2, 3)


def with_tensor(**changed) -> bytes:
    """A saved tensor with a changed description."""
    spec = {"count": 6, "offset": 0, "shape": (2, 3), "strides": (3, 1), "key": "0"} | changed

    class Described:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), spec["offset"], spec["shape"], spec["strides"])

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (
                ("storage", torch.FloatStorage, spec["key"], "cpu", spec["count"]) if type(value) is Storage else None
            )

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(Described())
    return zipped(("f/data.pkl", buffer.getvalue()), ("f/data/0", TENSOR.numpy().tobytes()))


def lying(size: int) -> bytes:
    """An archive whose directory has a wrong size for its one large entry."""
    data = bytearray(zipped(("f/data.pkl", PICKLE), ("f/data/0", bytes(64))))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", size, size)
    return bytes(data)


def many(count: int) -> bytes:
    return zipped(("f/data.pkl", PICKLE), *((f"f/data/{i}", b"") for i in range(count)))


def large(directory: bytes, count: int) -> bytes:
    """A zip end record with this number of entries."""
    return directory * count + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory) * count, 0, 0)


HOSTILE = {
    "no archive": b"<html>not found</html>",
    "a bare pickle": PICKLE,
    "empty": b"",
    "zeros": bytes(10_000),
    "only a signature": b"PK\x03\x04",
    "compressed": zipped(("f/data.pkl", PICKLE), compression=zipfile.ZIP_DEFLATED),
    "a zip bomb": zipped(("f/data.pkl", PICKLE), ("f/data/0", bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED),
    "larger than the archive": lying(2**31),
    "slightly larger": lying(80),
    "a name twice": zipped(("f/data.pkl", PICKLE), ("f/data.pkl", PICKLE)),
    "two folders": zipped(("f/data.pkl", PICKLE), ("g/data.pkl", PICKLE)),
    "upwards": zipped(("f/data.pkl", PICKLE), ("f/../../x", b"")),
    "absolute": zipped(("f/data.pkl", PICKLE), ("/f/x", b"")),
    "outside": zipped(("data.pkl", PICKLE)),
    "no pickle": zipped(("f/data/0", b"")),
    "deeper": zipped(("f/g/data.pkl", PICKLE)),
    "big-endian": zipped(("f/data.pkl", PICKLE), ("f/byteorder", b"big")),
    "too many entries": many(10_001),
    "a directory of a million": large(b"PK\x01\x02" + bytes(42), 1_000_000),
    "code": zipped(("f/data.pkl", b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.")),
    "altered": saved(TENSOR).replace(TENSOR.numpy().tobytes(), bytes(24)),
    "truncated": saved(TENSOR)[:-100],
    "storage missing": with_tensor(key="1"),
    "storage outside": with_tensor(key="../data.pkl"),
    "storage shorter than said": with_tensor(count=10**12),
    "tensor beyond its storage": with_tensor(offset=1),
    "negative offset": with_tensor(offset=-3),
    "tensor larger than its storage": with_tensor(shape=(2**40, 2**20), strides=(2**20, 1)),
    "expanded": with_tensor(shape=(10**9, 6), strides=(0, 1)),
    "negative sides": with_tensor(shape=(-2, -3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, name):
    (tmp_path / "x.pth").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"x\.pth (is|holds|has|was) "):
        read_published(tmp_path / "x.pth")


@pytest.mark.parametrize("in_zip", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_plain_values_and_settings_are_read(tmp_path, in_zip):
    value = [1, ("two", None), {"x": 2.5}, argparse.Namespace(lr=1)]
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=in_zip)
    assert read_weights_file(tmp_path / "x.pth") == value
