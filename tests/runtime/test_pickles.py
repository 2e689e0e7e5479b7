import collections
import os
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redi.runtime.pickles import MAX_OPERATIONS, Record, read_pickle

MARKER = "redi_pickle_was_executed"  # in the test's own folder


class Model:
    """What a file may hold an object of, by name."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __setstate__(self, state):
        raise AssertionError("the class was used")


NAME = f"{Model.__module__}.Model"


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(MARKER)


# What is admitted


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [None, True, 7, -(2**40), 2.5, "text £", [1, [2]], (), (1, "b"), (1, 2, 3, 4), {"a": {"b": [(1,)]}, 3: None}],
    ids=repr,
)
def test_plain_values_come_back(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", "?"])
def test_arrays_come_back_read_only(dtype, protocol):
    array = (100 * np.random.default_rng(0).normal(size=(3, 4, 2))).astype(dtype)
    for expected in (array, np.asfortranarray(array[..., 0]), array[0, 0, :1]):
        found = read_pickle(pickle.dumps({"x": expected}, protocol=protocol))["x"]
        assert found.dtype == expected.dtype and not found.flags.writeable
        np.testing.assert_array_equal(found, expected)


def test_numpy_numbers_and_ordered_dictionaries_come_back():
    value = collections.OrderedDict(a=np.float64(2.5), b=np.int64(3))
    assert read_pickle(pickle.dumps(value, protocol=2)) == {"a": 2.5, "b": 3}


def test_an_array_that_occurs_twice_is_one():
    array = np.arange(3.0)
    first, second = read_pickle(pickle.dumps([array, array], protocol=4))
    assert first is second


def test_an_object_becomes_a_record_without_its_class():
    found = read_pickle(pickle.dumps(Model(mean=np.ones(2), n=3), protocol=2), records=[NAME])
    assert type(found) is Record and found.name == NAME
    assert found.state["n"] == 3 and found.state["mean"].tolist() == [1, 1]


def test_an_object_of_a_class_that_was_not_named_is_refused():
    with pytest.raises(ValueError, match=f"asks for '{NAME}'"):
        read_pickle(pickle.dumps(Model(n=3), protocol=2))


# What is hostile. Assembled by hand: c<module>\n<name>\n is a global, R a call, o/i/\x81 an object, b a state.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def get(module: str, name: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


TOUCH = f"touch {MARKER}"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"

HOSTILE = {
    "os.system": b"cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "posix.system": b"cposix\nsystem\n" + text(TOUCH) + b"\x85R.",
    "eval": b"c__builtin__\neval\n" + text("1") + b"\x85R.",
    "exec": b"cbuiltins\nexec\n" + text(f"open({MARKER!r}, 'w')") + b"\x85R.",
    "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\n" + text("__class__") + b"tR.",
    "import": b"cbuiltins\n__import__\n" + text("os") + b"\x85R.",
    "numpy.load": b"cnumpy\nload\n" + text("x") + b"\x85R.",
    "numpy.lib.npyio": b"cnumpy.lib.npyio\nload\n" + text("x") + b"\x85R.",
    "numpy.f2py": b"cnumpy.testing._private.utils\nrunstring\n" + text("1") + b"}\x86R.",
    "torch.load": b"ctorch\nload\n" + text("x") + b"\x85R.",
    "dotted name": get("numpy", "ndarray.__class__") + b"(tR.",
    "dotted module": get("numpy.ndarray", "dtype") + b"(tR.",
    "name with a space": b"cnumpy ndarray\n__class__\n(tR.",
    "copyreg": b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",
    "copyreg newobj": b"ccopyreg\n__newobj__\n(cbuiltins\nobject\ntR.",
    "functools.partial": b"cfunctools\npartial\n(cos\nsystem\ntR.",
    "operator.attrgetter": b"coperator\nattrgetter\n" + text("x") + b"\x85R.",
    "instance": b"(" + text(TOUCH) + b"ios\nsystem\n.",
    "object": b"(cos\nsystem\n" + text(TOUCH) + b"o.",
    "object of what is admitted": b"(cnumpy\nndarray\nK\x01o.",
    "new object": b"cos\nsystem\n" + text(TOUCH) + b"\x85\x81.",
    "new object of an array": b"cnumpy\nndarray\nK\x05\x85\x85\x81.",
    "new object with keywords": f"c{NAME.rpartition('.')[0]}\nModel\n)}}\x92.".encode("latin1"),
    "class with arguments": f"c{NAME.rpartition('.')[0]}\nModel\nK\x01\x85\x81.".encode("latin1"),
    "call of a record's class": f"c{NAME.rpartition('.')[0]}\nModel\n)R.".encode(),
    "call of a string": text("os.system") + text("x") + b"\x85R.",
    "call of an array type": b"cnumpy\nndarray\nK\x05\x85\x85R.",
    "state of a function": b"c_codecs\nencode\n}" + text("__code__") + text("x") + b"sb.",
    "state of a class": b"cnumpy\nndarray\nN}" + text("__reduce__") + text("x") + b"s\x86b.",
    "state of a dictionary": b"}}" + text("a") + text("b") + b"sb.",
    "setstate of a record": f"c{NAME.rpartition('.')[0]}\nModel\n)\x81N}}\x86b.".encode("latin1"),
    "two states of a record": f"c{NAME.rpartition('.')[0]}\nModel\n)\x81}}X\x01\x00\x00\x00aNsb}}b.".encode("latin1"),
    "extension 1": b"\x82\x01.",
    "extension 2": b"\x83\x01\x00.",
    "extension 4": b"\x84\x01\x00\x00\x00.",
    "persistent id": b"P1\n.",
    "binary persistent id": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "entries for a class": b"cnumpy\nndarray\n" + text("a") + text("b") + b"s.",
    "entries for an array": ARRAY + b"K\x00K\x01s.",
    "items for a class": b"cnumpy\nndarray\n" + text("a") + b"a.",
    "items for a tuple": b")K\x01a.",
    "set": b"\x8f.",
    "decimal number": b"I" + b"9" * 100_000 + b"\n.",
    "other encoding": b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R.",
    "objects in an array": b"cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R.",
    "structures in an array": b"cnumpy\ndtype\n(" + text("f4,f4") + b"tR.",
    "type from a list": b"cnumpy\ndtype\n]\x85R.",
    "big-endian array": FLOAT32 + b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
    "array without contents": ARRAY + b".",
    "array longer than its bytes": ARRAY + b"(K\x01\x8a\x05\x00\x00\x00\x00\x7f\x85" + FLOAT32 + b"\x89C\x04aaaatb.",
    "array of negative length": ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT32 + b"\x89C\x04aaaatb.",
    "array of too many sides": ARRAY + b"(K\x01(" + b"K\x01" * 40 + b"t" + FLOAT32 + b"\x89C\x04aaaatb.",
    "array of too large sides": ARRAY + b"(K\x01(K\x00\x8a\x08" + b"\xff" * 7 + b"\x7ft" + FLOAT32 + b"\x89C\x00tb.",
    "array from an array": ARRAY + b"(K\x01K\x01\x85" + FLOAT32 + b"\x89" + ARRAY + b"tb.",
    "number of another size": b"cnumpy.core.multiarray\nscalar\n" + FLOAT32 + b"C\x03aaa\x86R.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "bytes of 2^31": b"\x80\x04B" + struct.pack("<I", 2**31) + b"x.",
    "text of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "number of negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b"x.",
    "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"x.",
    "missing memo": b"h\x05.",
    "popped mark": b"(0.",
    "mark as operand": b"(\x85.",
    "nothing on the stack": b".",
    "two on the stack": b"NN.",
    "something after the end": b"N.N.",
    "no end": b"N",
    "empty": b"",
    "text": b"<html>not found</html>",
    "zeros": bytes(1000),
    "nested key": b"})" + b"\x85" * 90_000 + b"Ns.",
    "too many operations": b"(" + b"N" * MAX_OPERATIONS + b"t.",
    "memo without end": b"N" + b"\x94" * 2_000_000 + b".",
    "one string encoded again and again": (
        b"](c_codecs\nencode\nq\x00" + text("x" * 200_000) + b"q\x01" + text("latin1") + b"q\x02"
        + b"h\x00h\x01h\x02\x86R" * 15_000 + b"e."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_at_once(name):
    start = time.process_time()
    with pytest.raises(ValueError, match="^no pickle of plain data: "):
        read_pickle(HOSTILE[name], records=[NAME])
    assert time.process_time() - start < 2


def test_the_hostile_pickles_do_work_on_the_real_unpickler():
    """Else the test above would refuse nothing that matters."""
    payload = HOSTILE["os.system"].replace(TOUCH.encode(), b"true " + b" " * (len(TOUCH) - 5))
    assert pickle.loads(payload) == 0
    assert pickle.loads(HOSTILE["eval"]) == 1


@pytest.mark.parametrize("module", ["os", "subprocess", "builtins", "torch", "sys", "redi.runtime.pickles"])
def test_a_refused_name_is_said(module):
    with pytest.raises(ValueError, match=f"asks for '{module}.anything', which holds no data that is expected here"):
        read_pickle(f"c{module}\nanything\n.".encode())


def test_nothing_is_imported_for_a_name():
    """`antigravity` opens a browser when it is imported."""
    import sys

    with pytest.raises(ValueError, match="antigravity"):
        read_pickle(b"cantigravity\nx\n.")
    read_pickle(b"cantigravity\nx\n)\x81.", records=["antigravity.x"])
    assert "antigravity" not in sys.modules


def test_a_far_place_in_the_memo_takes_no_memory():
    """The C unpickler makes room for 2^31 entries here."""
    assert read_pickle(b"Nr\xff\xff\xff\x7f.") is None


def test_a_structure_that_refers_to_itself_is_harmless():
    found = read_pickle(b"]q\x00h\x00a.")
    assert found[0] is found


def test_a_deeply_nested_list_is_harmless():
    assert type(read_pickle(b"]" * 40_000 + b"a" * 39_999 + b".")) is list


def test_many_references_to_one_thing_take_no_memory():
    """Nested a billion times in effect, 30 times in fact."""
    found = read_pickle(b")" + b"q\x00h\x00\x86" * 30 + b".")
    assert found[0] is found[1]


def valid() -> bytes:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": np.ones(3, "f4"), "z": [1, (2, "three"), None]}
    return pickle.dumps({"model": Model(**arrays), **arrays}, protocol=2)


def outcome(data: bytes) -> None:
    try:
        read_pickle(data, records=[NAME])
    except ValueError as error:
        assert str(error).startswith("no pickle of plain data: ")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, len(valid()) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_altered_bytes_give_a_value_or_a_value_error(changes):
    data = bytearray(valid())
    for position, byte in changes:
        data[position] = byte
    outcome(bytes(data))


OPERATIONS = [bytes([code]) for code in b"()]}NtbRsuael0.2q\x00h\x00\x81\x85\x86\x87\x88\x94\x93Q"]
PARTS = [*OPERATIONS, ARRAY, FLOAT32, text("a"), text("latin1"), b"C\x02ab", b"K\x01", b"c_codecs\nencode\n"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PARTS), max_size=40))
def test_operations_in_any_order_give_a_value_or_a_value_error(parts):
    outcome(b"".join(parts) + b".")


@pytest.mark.parametrize("length", range(0, len(valid()) - 1, 7))
def test_a_truncated_pickle_is_refused(length):
    with pytest.raises(ValueError, match="no pickle of plain data"):
        read_pickle(valid()[:length], records=[NAME])
