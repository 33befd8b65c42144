"""Reads pickles that contain plain data. Nothing that a file names is imported or called.

The operations of the few that the files of CIFAR need are carried out here, on the tokens of `pickletools.genops`. So a
file can neither execute code nor make numpy's own readers of pickles, which trust their input, see what it contains.
"""

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_BYTES = 1 << 30
ALLOWED = "dictionaries, lists, tuples, bytes, text, whole numbers and numpy arrays of uint8"
ARRAY_MODULES = {
    f"{package}.{module}" for package in ("numpy.core", "numpy._core") for module in ("multiarray", "numeric")
}
INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
STRINGS_OF_PYTHON_2 = {"BINSTRING", "SHORT_BINSTRING"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
FIXED_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str


@dataclass
class Dtype:
    code: Any


@dataclass
class Array:
    """A numpy array as a pickle describes it."""

    shape: Any = None
    dtype: Any = None
    content: Any = None
    fortran: Any = False

    def values(self) -> np.ndarray:
        """Returns the array; raises ValueError if it is not a whole one of uint8."""
        if not isinstance(self.dtype, Dtype) or _text(self.dtype.code) not in ("u1", "|u1", "uint8"):
            raise ValueError("an array is not of uint8")
        if not isinstance(self.shape, tuple) or not all(isinstance(one, int) and one >= 0 for one in self.shape):
            raise ValueError("an array has no shape")
        if not isinstance(self.content, bytes):
            raise ValueError("an array has no content")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def read_pickle(path: Path) -> Any:
    """Returns the content of a pickle of plain data. Text of Python 2 is returned as bytes, an array as `Array`.

    Raises: ValueError naming the file if it is cut or damaged, larger than 1 GiB, or contains or calls anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes; allowed are at most {MAX_BYTES}")
    try:
        return _evaluate(path.read_bytes())
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: is damaged or not a pickle of plain data ({why}); allowed are {ALLOWED}") from None


def _evaluate(content: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    encoded = 0

    def above_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for operation, argument, place in pickletools.genops(content):
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            (value,) = stack
            return value
        if name == "MARK":
            marks.append(len(stack))
        elif name in INTEGERS or name in TEXTS:
            stack.append(argument)
        elif name in BYTES:
            stack.append(bytes(argument))
        elif name in STRINGS_OF_PYTHON_2:
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in FIXED_TUPLES:
            start = len(stack) - FIXED_TUPLES[name]
            stack[start:] = [tuple(stack[start:])]
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name == "LIST":
            stack.append(above_mark())
        elif name == "DICT":
            stack.append(_filled({}, above_mark()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("APPEND", "APPENDS"):
            values = above_mark() if name == "APPENDS" else [stack.pop()]
            _of(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = above_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _filled(_of(stack[-1], dict), values)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(Name(*argument.rsplit(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [Name(*map(_text, stack[-2:]))]
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _called(stack[-1], _of(arguments, tuple))
            # A text that is in the file once can be encoded any number of times, which would exhaust the memory.
            encoded += len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if encoded > len(content):
                raise ValueError(f"more bytes than it has are encoded by byte {place}")
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        else:
            raise ValueError(f"operation {name} at byte {place} is not allowed")
    raise ValueError("it has no end")


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _filled(target: dict, values: list[Any]) -> dict:
    """Adds alternating keys and values; keys may only be text, which is cheap to hash however a file repeats it."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_text(key)] = value
    return target


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else _of(value, str)


def _called(function: Any, arguments: tuple) -> Any:
    """Returns what a call of a function that numpy's pickles name describes; raises ValueError for others."""
    module, name = _of(function, Name)
    if (module, name) == ("numpy", "dtype"):
        return Dtype(arguments[0])
    if module in ARRAY_MODULES and name == "_reconstruct" and arguments[0] == Name("numpy", "ndarray"):
        return Array()
    if module in ARRAY_MODULES and name == "_frombuffer":
        content, dtype, shape, order = arguments
        return Array(shape, dtype, content, order == "F")
    if (module, name) == ("_codecs", "encode") and arguments[1:] == ("latin1",):  # bytes, as Python 3 writes them for 2
        return arguments[0].encode("latin1")
    raise ValueError(f"{module}.{name} is not allowed")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Array):
        _, target.shape, target.dtype, target.fortran, target.content = state
    elif not isinstance(target, Dtype):  # the state of a dtype says nothing more about uint8
        raise ValueError(f"{type(target).__name__} has no state")
