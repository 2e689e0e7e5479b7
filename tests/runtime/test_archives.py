import io
import pickle
import struct
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redi.runtime.archives import read_torch_archive


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.int32])
def test_tensors_come_back_as_arrays(tmp_path, dtype):
    torch.save(
        {"x": TENSOR.to(dtype), "part": TENSOR.to(dtype)[1], "one": torch.tensor(3, dtype=dtype)}, tmp_path / "f"
    )
    found = read_torch_archive(tmp_path / "f")
    np.testing.assert_array_equal(found["x"], TENSOR.to(dtype).numpy(), strict=True)
    np.testing.assert_array_equal(found["part"], TENSOR.to(dtype)[1].numpy(), strict=True)
    assert found["one"] == 3


def test_what_refers_to_torch_by_name_only_is_read_too(tmp_path):
    torch.save([1, ("two", None), {"x": np.arange(3.0)}], tmp_path / "f")
    first, second, third = read_torch_archive(tmp_path / "f")
    assert (first, second, third["x"].tolist()) == (1, ("two", None), [0, 1, 2])


def with_tensor(**changed) -> bytes:
    """A saved tensor, some of whose description is another."""
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


def test_a_tensor_written_by_hand_is_that_of_torch(tmp_path):
    (tmp_path / "f").write_bytes(with_tensor())
    np.testing.assert_array_equal(read_torch_archive(tmp_path / "f"), TENSOR.numpy())


def lying(size: int) -> bytes:
    """An archive whose directory says another size than its one large entry has."""
    data = bytearray(zipped(("f/data.pkl", PICKLE), ("f/data/0", bytes(64))))
    place = data.rindex(b"PK\x01\x02")
    data[place + 20 : place + 28] = struct.pack("<II", size, size)
    return bytes(data)


def many(count: int) -> bytes:
    return zipped(("f/data.pkl", PICKLE), *((f"f/data/{i}", b"") for i in range(count)))


def large(directory: bytes, count: int) -> bytes:
    """An end record that announces so many entries."""
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
def test_a_hostile_archive_is_refused_at_once(tmp_path, name):
    path, start = tmp_path / "f.pth", time.process_time()
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=f"^{path} cannot be read: "):
        read_torch_archive(path)
    assert time.process_time() - start < 3


def test_the_older_format_of_torch_is_refused(tmp_path):
    torch.save(TENSOR, tmp_path / "f", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="no intact zip archive"):
        read_torch_archive(tmp_path / "f")


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_a_path_of_no_file_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="missing or no file"):
        read_torch_archive(tmp_path / path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(ValueError, match="1099511627776 bytes: more than 268435456 are not read"):
        read_torch_archive(tmp_path / "f")


VALID = saved({"x": TENSOR, "y": np.ones(3)})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_altered_and_truncated_archives_give_a_value_or_a_value_error(tmp_path_factory, changes, length):
    data = bytearray(VALID)
    for position, byte in changes:
        data[position] = byte
    path = Path(tmp_path_factory.getbasetemp()) / "fuzzed"
    path.write_bytes(data[:length])
    try:
        read_torch_archive(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read")
