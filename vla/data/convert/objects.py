"""Reading .npy files of Python objects without trusting them.

NumPy writes an array of objects as a pickle, and a pickle may call anything. Here nothing of what it names is ever
called: arrays, dtypes and numbers are rebuilt by stand-ins which keep only what was given to them, and are turned into real
ones after a look. Admitted are dict, list, tuple, str, bytes, numbers, None, and arrays of numbers, texts or of these.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from vla.data.convert.files import Fault

MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
NUMBERS = ("b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8")
DEEPEST = 50


class _Dtype:
    """Stands for numpy.dtype: a code like "f8" or "U12" and a byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        code = self.code if isinstance(self.code, str) else ""
        if code == "O8" or code in NUMBERS or (code[:1] in "US" and code[1:].isdigit()):
            return np.dtype(code if self.order == "|" or code == "O8" else f"{'>' if self.order == '>' else '<'}{code}")
        raise Fault(f"holds an array of {self.code!r}, which is not read")


class _Array:
    """Stands for numpy.ndarray on its way out of `_reconstruct`."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def real(self, values: Callable[[Any], Any]) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        kind, count = dtype.real(), math.prod(shape)
        if kind.kind == "O":
            if count != len(data):
                raise Fault(f"holds an array of shape {shape} with {len(data)} entries")
            flat = np.empty(count, object)
            for i, value in enumerate(data):
                flat[i] = values(value)
        else:
            flat = np.frombuffer(data, kind, count)
        return flat.reshape(shape, order="F" if fortran else "C").copy()


class _Scalar:
    """Stands for one number of NumPy's."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: _Dtype, data: bytes) -> None:
        self.dtype, self.data = dtype, data

    def __setstate__(self, state: Any) -> NoReturn:
        raise Fault("holds a number with a state")

    def real(self) -> Any:
        return np.frombuffer(self.data, self.dtype.real(), 1)[0].item()


class _Maker:
    """Stands for a function that a pickle may name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> NoReturn:
        raise Fault(f"changes numpy's {self.name}")

    def __call__(self, *given: Any) -> Any:
        if self.name == "_reconstruct":
            return _Array()
        if self.name == "dtype":
            return _Dtype(given[0])
        if self.name == "scalar":
            return _Scalar(*given)
        raise Fault(f"calls numpy's {self.name}")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name in ("_reconstruct", "scalar", "ndarray", "dtype"):
            return _Maker(name)
        raise Fault(f"names {module}.{name}, which is not read")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Fault("refers to something outside of itself")


def _check_sizes(pickled: bytes) -> None:
    """Fault where a few bytes would make the pickle machine take any amount of memory."""
    operations = list(pickletools.genops(pickled))  # itself refuses lengths beyond the end
    for operation, argument, _ in operations:
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= cast(int, argument) <= len(operations):
            raise Fault("is a damaged pickle")


class _Rebuild:
    """A value with all stand-ins replaced; what is shared stays shared, so that nesting cannot multiply it."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._depth = 0

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bytes | bool | int | float):
            return value
        if id(value) not in self._done:
            self._depth += 1
            if self._depth > DEEPEST:
                raise Fault(f"is nested more than {DEEPEST} deep")
            self._done[id(value)] = self._container(value)
            self._depth -= 1
        return self._done[id(value)]

    def _container(self, value: Any) -> Any:
        if isinstance(value, _Array):
            return value.real(self)
        if isinstance(value, _Scalar):
            return value.real()
        if isinstance(value, dict):
            return {self(k): self(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self(v) for v in value]
        if isinstance(value, tuple):
            return tuple(self(v) for v in value)
        raise Fault(f"holds a {type(value).__name__}, which is not read")


def load_objects(path: str | Path) -> Any:
    """What a .npy file holds: an array, or for an array of one object the object itself.

    Raises Fault, whatever is in the file, if it is not exactly that.
    """
    try:
        data = Path(path).read_bytes()
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        rest = data[file.tell() :]
        if dtype.kind != "O":
            count = math.prod(shape)
            return np.frombuffer(rest, dtype, count).reshape(shape, order="F" if fortran else "C").copy()
        _check_sizes(rest)
        pickled = _Reader(io.BytesIO(rest)).load()
        found = _Rebuild()(pickled)
    except FileNotFoundError:
        raise Fault("is missing") from None
    except Fault:
        raise
    except Exception as error:  # damaged bytes can make the pickle machine raise anything
        raise Fault(f"cannot be read ({type(error).__name__}: {error})") from None
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise Fault(f"does not hold the array of shape {shape} that it promises")
    return found.item() if found.shape == () else found
