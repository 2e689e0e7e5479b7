"""Arrays out of pickles of other people, without unpickling: nothing that the file names is imported or called.

A pickle is a program. This is a small interpreter of its own for the part of it that holds data: numpy arrays,
torch tensors, containers, and objects of named classes, which become inert `Record`s. It has no way to call
anything else, so there is no list of dangerous things to keep complete.
"""

import math
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

MAX_OPERATIONS = 100_000  # the published statistics, the only such file that is known, have 330
DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}
STORAGES = {"HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8", "LongStorage": "i8", "IntStorage": "i4"}


@dataclass
class Record:
    """An object as its pickle describes it: the name of its class and its attributes."""

    name: str
    state: dict = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    """A name that the pickle refers to: a label, with nothing behind it."""

    name: str


@dataclass
class _Array:
    """An array between its creation and the operation that fills it."""

    value: np.ndarray | None = None


class _Mark:
    """Where a group of operands begins."""


def read_pickle(data: bytes, *, records: Collection[str] = (), storage: Callable[[str], bytes] | None = None) -> object:
    """What a pickle describes: containers, numbers, strings, read-only numpy arrays, `Record`s.

    Args:
        records: full names of the classes whose objects may occur; they are never imported.
        storage: the bytes of a tensor's storage by its key; KeyError where there is none.

    Raises:
        ValueError: no pickle, not a whole one, or one in need of anything else; says what.
    """
    machine = _Machine(records, storage, budget=len(data))
    try:
        for count, (operation, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                if position + 1 != len(data):
                    raise ValueError("something follows the end of the pickle")
                (result,) = machine.stack
                return _plain(result)
            machine.do(operation.name, argument)
    except ValueError as error:
        raise ValueError(f"no pickle of plain data: {error}") from None
    except (TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:  # operands that do not fit
        raise ValueError(f"no pickle of plain data: {type(error).__name__} {error}") from None
    raise ValueError("no pickle of plain data: it has no end")


class _Machine:
    """Stack and memo of a pickle, and the operations that hold data."""

    def __init__(self, records: Collection[str], storage: Callable[[str], bytes] | None, budget: int):
        self.records, self.storage, self.budget = frozenset(records), storage, budget
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def do(self, name: str, argument) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "MARK":
                stack.append(_Mark())
            case "TUPLE":
                stack.append(tuple(map(_plain, self.since_mark())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = [self.pop() for _ in range(count)]
                stack.append(tuple(map(_plain, reversed(items))))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self.top()
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "APPEND" | "APPENDS":
                items = self.since_mark() if name == "APPENDS" else [self.pop()]
                _need(type(self.top()) is list, "items for what is no list")
                self.top().extend(map(_plain, items))
            case "SETITEM" | "SETITEMS":
                items = self.since_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
                _need(type(self.top()) is dict and len(items) % 2 == 0, "entries for what is no dictionary")
                # Strings and numbers only: hashing a deeply nested tuple would exhaust the stack.
                _need(all(type(key) in (str, int) for key in items[::2]), "a key that is no string or number")
                self.top().update(zip(items[::2], map(_plain, items[1::2]), strict=True))
            case "GLOBAL" | "STACK_GLOBAL":
                parts = argument.split(" ") if name == "GLOBAL" else [self.pop(), self.pop()][::-1]
                stack.append(self.known(".".join(parts)))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                stack.append(self.call(function, arguments))
            case "NEWOBJ":
                arguments, cls = self.pop(), self.pop()
                _need(type(cls) is _Global and cls.name in self.records, "an object of what is no class")
                _need(type(arguments) is tuple and not arguments, "arguments for a class")
                stack.append(Record(cls.name))
            case "BUILD":
                state = self.pop()
                stack.append(_build(self.pop(), state))
            case "BINPERSID":
                stack.append(self.tensor_storage(self.pop()))
            case _:
                raise ValueError(f"the operation {name} is not needed for data, and refused")

    def top(self):
        _need(bool(self.stack) and type(self.stack[-1]) is not _Mark, "an operation without operands")
        return self.stack[-1]

    def pop(self):
        self.top()
        return self.stack.pop()

    def since_mark(self) -> list:
        items = []
        while type(self.stack[-1]) is not _Mark:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def known(self, name: str) -> _Global:
        """The label for a name, where it is one that data need."""
        name = name.replace("numpy._core.", "numpy.core.")  # as numpy 2 writes it
        storages = {f"torch.{storage}" for storage in STORAGES}
        if name not in self.records | CALLS.keys() | storages | {"numpy.ndarray"}:
            raise ValueError(f"it asks for {name[:200]!r}, which holds no data that is expected here: refused")
        return _Global(name)

    def call(self, function, arguments):
        """What a REDUCE stands for: one of `CALLS`, on operands that are checked there."""
        _need(type(function) is _Global and type(arguments) is tuple, "a call of what is no function")
        _need(function.name in CALLS, f"a call of {function.name}")
        return CALLS[function.name](self, *arguments)

    def encode(self, text, encoding) -> bytes:
        """Bytes, as protocol 2 writes them: a string to be encoded."""
        _need(type(text) is str and encoding == "latin1", "an encoding other than latin1")
        self.budget -= len(text)
        _need(self.budget >= 0, "more bytes than the file has")
        return text.encode("latin1")

    def tensor_storage(self, identifier) -> np.ndarray:
        _need(self.storage is not None, "a persistent id outside of an archive")
        kind, dtype, key, _, count = identifier
        _need(kind == "storage" and type(key) is str and type(dtype) is _Global, "a persistent id of no tensor")
        try:
            data = self.storage(key)
        except KeyError:
            raise ValueError(f"the tensor data {key[:50]!r} is missing") from None
        array = np.frombuffer(data, STORAGES[dtype.name.removeprefix("torch.")])
        _need(len(array) == count, f"a storage of {len(array)} numbers instead of {count}")
        return array

    def tensor(self, storage, offset, shape, strides, requires_grad=False, hooks=None, *_) -> np.ndarray:
        _need(type(storage) is np.ndarray and type(offset) is int and offset >= 0, "a tensor of no storage")
        _check_shape(shape)
        contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        _need(strides == contiguous or math.prod(shape) <= 1, "a tensor that is not contiguous")
        _need(offset + math.prod(shape) <= len(storage), f"a tensor of shape {shape} beyond its storage")
        return storage[offset : offset + math.prod(shape)].reshape(shape)

    def dtype(self, code, align=False, copy=False) -> np.dtype:
        _need(type(code) is str and code in DTYPES, f"an array of {code[:20]!r}")
        return np.dtype(code).newbyteorder("<")

    def scalar(self, dtype, data) -> np.generic:
        _need(isinstance(dtype, np.dtype) and type(data) is bytes, "a number of no type")
        _need(len(data) == dtype.itemsize, "a number of another size")
        return np.frombuffer(data, dtype)[0]


def _build(target, state):
    """What a BUILD stands for: the attributes of a record, the byte order of a type, the contents of an array."""
    if type(target) is Record:
        _need(type(state) is dict and not target.state, f"attributes of a {target.name}")
        target.state.update(state)
    elif isinstance(target, np.dtype):
        _need(type(state) is tuple and len(state) >= 5 and state[1] in ("<", "|"), "numbers that are not little-endian")
        _need(state[2:5] == (None, None, None), "an array of structures")
    elif type(target) is _Array:
        _, shape, dtype, columns_first, data = state
        _need(isinstance(dtype, np.dtype) and type(data) is bytes, "an array of no numbers")
        _check_shape(shape)
        needed = math.prod(shape) * dtype.itemsize
        _need(len(data) == needed, f"an array of shape {shape} in {len(data)} bytes instead of {needed}")
        target.value = np.frombuffer(data, dtype).reshape(shape, order="F" if columns_first is True else "C")
    else:
        raise ValueError(f"a state for a {type(target).__name__}")
    return target


def _plain(value):
    """An operand as what it stands for, where it is an array."""
    if type(value) is _Array:
        _need(value.value is not None, "an array without contents")
        return value.value
    return value


def _check_shape(shape) -> None:
    whole = type(shape) is tuple and len(shape) <= 8 and all(type(side) is int and side >= 0 for side in shape)
    _need(whole, "an array of no shape")


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(f"it holds {otherwise}")


# What the calls of a pickle of data stand for.
CALLS = {
    "_codecs.encode": _Machine.encode,
    "collections.OrderedDict": lambda machine: {},
    "numpy.core.multiarray._reconstruct": lambda machine, cls, shape, code: _Array(),
    "numpy.core.multiarray.scalar": _Machine.scalar,
    "numpy.dtype": _Machine.dtype,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
}
