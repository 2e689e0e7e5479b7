"""Hostile pickles, alone and in archives, are refused; nothing in them is imported or called."""

import io
import os
import pickle
import struct
import sys
import zipfile

import pytest

from redi.models.published.file import read_published
from redi.models.reducers.published import read_published_pca
from redi.runtime.weights_files import read_weights_file

MARKER = "redi_pickle_was_executed"  # in the test's own folder
PCA = ("sklearn.decomposition._pca", "PCA")
READERS = {
    "statistics": read_published_pca,
    "published": read_published,
}


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(MARKER)


def archive(data: bytes) -> bytes:
    """A file of torch.save with this pickle and one storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (("data.pkl", data), ("version", b"3\n"), ("data/0", bytes(64))):
            file.writestr(f"f/{name}", content)
    return buffer.getvalue()


# Assembled by hand: c<module>\n<name>\n is a global, R a call, o/i/\x81 an object, b a state.


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
    "new object with keywords": f"c{PCA[0]}\n{PCA[1]}\n)}}\x92.".encode("latin1"),
    "class with arguments": f"c{PCA[0]}\n{PCA[1]}\nK\x01\x85\x81.".encode("latin1"),
    "call of a record's class": f"c{PCA[0]}\n{PCA[1]}\n)R.".encode(),
    "call of a string": text("os.system") + text("x") + b"\x85R.",
    "call of an array type": b"cnumpy\nndarray\nK\x05\x85\x85R.",
    "state of a function": b"c_codecs\nencode\n}" + text("__code__") + text("x") + b"sb.",
    "state of a class": b"cnumpy\nndarray\nN}" + text("__reduce__") + text("x") + b"s\x86b.",
    "state of a dictionary": b"}}" + text("a") + text("b") + b"sb.",
    "setstate of a record": f"c{PCA[0]}\n{PCA[1]}\n)\x81N}}\x86b.".encode("latin1"),
    "two states of a record": f"c{PCA[0]}\n{PCA[1]}\n)\x81}}X\x01\x00\x00\x00aNsb}}b.".encode("latin1"),
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
    "deeply nested key": b"})" + b"\x85" * 300_000 + b"Ns.",
    "too many operations": b"(" + b"N" * 100_000 + b"t.",
    "memo without end": b"N" + b"\x94" * 100_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(name, reader, tmp_path):
    for content in (HOSTILE[name], archive(HOSTILE[name])):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pth") as refusal:
            READERS[reader](tmp_path / "x.pth")
        assert len(str(refusal.value)) < 2_000


def test_the_hostile_pickles_do_work_on_the_real_unpickler():
    """Checks that the pickles of the test above are dangerous."""
    payload = HOSTILE["os.system"].replace(TOUCH.encode(), b"true " + b" " * (len(TOUCH) - 5))
    assert pickle.loads(payload) == 0
    assert pickle.loads(HOSTILE["eval"]) == 1


@pytest.mark.parametrize("module", ["os", "subprocess", "builtins.open", "torch", "sys", "redi.runtime.weights_files"])
def test_a_refused_name_is_reported(module, tmp_path):
    (tmp_path / "x.pth").write_bytes(archive(f"\x80\x02c{module}\nanything\n.".encode("latin1")))
    with pytest.raises(ValueError, match=f"was refused: besides tensors it contains {module.partition('.')[0]}"):
        read_weights_file(tmp_path / "x.pth")


def test_nothing_is_imported_for_a_name(tmp_path):
    """`antigravity` opens a browser when it is imported."""
    (tmp_path / "x.pth").write_bytes(archive(b"\x80\x02cantigravity\nx\n)\x81."))
    with pytest.raises(ValueError, match="antigravity"):
        read_weights_file(tmp_path / "x.pth")
    assert read_weights_file(tmp_path / "x.pth", inert=["antigravity.x"]).arguments == ()
    assert "antigravity" not in sys.modules
