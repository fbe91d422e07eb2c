"""What goes over the wire between a policy server and its clients. All messages are msgpack maps; arrays in them are encoded
as openpi does it (Physical Intelligence, 2024), so that its clients and servers understand ours.

    server   metadata, at once: {"protocol", "version", "spec", "history", "foresight_steps", "continues", "policy"}
    client   {"hello": {"version": 1, "spec": ...}}         a client of openpi leaves this out
    server   {"ready": True}                                or the reason against it, and the end
    client   an observation of one world (names of vla.spec, no leading N), and what to do with it:
                 reset: True     forget all that came before it
                 seed: int       with reset: what the policy draws from
                 remember: True  take it in; no actions are wanted now
                 plan: (L, A), plan.weight: (L,)   what a policy that `continues` shall go on from (vla.spec)
             or {"foresee": True} instead of an observation
    server   {"actions": float32 (horizon, A), "server_timing": {...}}, or {"imagined": {camera: uint8 (H, W, 3)}, ...}

A text frame from the server is one sentence saying what is wrong. Only NumPy and msgpack are needed here.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from vla.spec import UserError

PROTOCOL = "hydra-vla"
VERSION = 1

DTYPES = frozenset(np.dtype(kind).str for kind in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"))
"""What an array may consist of: plain little-endian numbers, never objects."""
ITEMS = 8192
"""Entries of all maps and lists of a message together. A byte on the wire can cost a hundred in memory; this bounds it."""
DIMENSIONS = 8

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"


def encode(message: Any) -> bytes:
    """The frame of a message; raises TypeError for what the wire does not carry."""
    return msgpack.packb(message, default=_as_map)  # type: ignore[return-value]  # its stubs know of a streaming None


def decode(frame: bytes | str) -> dict[Any, Any]:
    """The message of a frame from anybody. Arrays are read-only views. Raises UserError, and nothing else, for a bad one."""
    if isinstance(frame, str):
        raise UserError("the message is a text frame: send msgpack in a binary one.")
    count = 0

    def counted(container: Any) -> Any:
        nonlocal count
        count += len(container)
        if count > ITEMS:
            raise ValueError(f"more than {ITEMS} entries")
        return container

    try:
        message = msgpack.unpackb(
            frame,
            object_hook=lambda found: _as_array(counted(found)),
            list_hook=counted,
            ext_hook=_refuse_extension,
            max_array_len=ITEMS,
            max_map_len=ITEMS,
        )
    except (ValueError, TypeError, ArithmeticError, msgpack.UnpackException) as error:
        reason = str(error)[:200] or type(error).__name__
        raise UserError(f"the message cannot be read ({reason}): send msgpack with arrays in openpi's encoding.") from error
    if not isinstance(message, dict):
        raise UserError(f"the message is a {type(message).__name__}: send a map of names to values.")
    return message


def _as_map(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.str not in DTYPES:
        raise TypeError(f"{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')} does not go over the wire")
    if isinstance(value, np.generic):
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}


def _as_array(found: dict[Any, Any]) -> Any:
    """The array or scalar that a map stands for, or the map; raises ValueError or TypeError for a bad one."""
    if ARRAY not in found and SCALAR not in found:
        return found
    data, dtype = found.get(DATA), found.get(DTYPE)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r:.40} is not allowed")
    if SCALAR in found:
        if not isinstance(data, bool | int | float):
            raise ValueError(f"the value of a number is a {type(data).__name__}")
        with np.errstate(over="raise"):
            return np.dtype(dtype).type(data)
    return array(data, dtype, found.get(SHAPE))


def array(data: Any, dtype: str, shape: Any) -> np.ndarray:
    """An array out of bytes that anybody sent; raises ValueError if they do not fit together. `dtype` is one of DTYPES."""
    if not isinstance(shape, list | tuple) or len(shape) > DIMENSIONS:
        raise ValueError(f"shape {shape!r:.40} is not a list of at most {DIMENSIONS} numbers")
    if not all(type(side) is int and 0 <= side < 2**32 for side in shape):
        raise ValueError(f"shape {shape!r:.40} has something else than sizes in it")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"the array's bytes do not make {dtype} of shape {shape!r:.60}")
    return np.frombuffer(data, dtype).reshape(shape)


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not allowed")
