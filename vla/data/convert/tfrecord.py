"""TFRecord files of tf.train.Example, read without TensorFlow.

    record:   uint64 length | uint32 checksum of it | data | uint32 checksum of data      little endian, masked CRC-32C
    Example:  protobuf; 1: features { 1: map name -> Feature { 1: bytes | 2: float32 | 3: int64, each { 1: values } } }

The layouts are those of TensorFlow's record_writer.h and example.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from vla.data.convert.files import Fault

Feature = list[bytes] | np.ndarray
LONGEST = 1 << 32  # bytes of a record; more is a damaged length that its checksum let through


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes | Fault]:
    """The records of a file, a Fault in place of one whose data is damaged; a last Fault where nothing can be read on."""
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) < 12:
                yield Fault("ends within a record")
                return
            length, crc = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != crc or length > LONGEST:
                yield Fault("has a damaged length, what comes after it is lost")
                return
            data, tail = file.read(length), file.read(4)
            if len(data) < length or len(tail) < 4:
                yield Fault("ends within a record")
                return
            yield data if masked_crc(data) == struct.unpack("<I", tail)[0] else Fault("does not match its checksum")


def parse_example(data: bytes) -> dict[str, Feature]:
    """Features by name: a list of bytes, or float32 or int64 (N,). Fault if the bytes are no Example."""
    found: dict[str, Feature] = {}
    for features in _messages(data, 1):
        for pair in _messages(features, 1):
            parts = {number: value for number, _, value in _fields(pair)}
            name, value = parts.get(1, b""), parts.get(2, b"")
            if not isinstance(name, bytes) or not isinstance(value, bytes):
                raise Fault("is no tf.train.Example")
            found[name.decode(errors="replace")] = _feature(value)
    return found


def _feature(data: bytes) -> Feature:
    for kind, _, values in _fields(data):
        if not isinstance(values, bytes):
            break
        if kind == 1:
            return _messages(values, 1)
        if kind == 2:
            return np.frombuffer(b"".join(_chunks(values)), "<f4")
        if kind == 3:
            numbers = [n for chunk in _chunks(values) for n in _varints(chunk)]
            return np.array(numbers, np.uint64).astype(np.int64)
        break
    return []


def _messages(data: bytes, wanted: int) -> list[bytes]:
    return [value for number, _, value in _fields(data) if number == wanted and isinstance(value, bytes)]


def _chunks(data: bytes) -> Iterator[bytes]:
    """The raw bytes of field 1, packed or one by one."""
    for number, _, value in _fields(data):
        if number == 1:
            yield _encode(value) if isinstance(value, int) else value


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise Fault("is no tf.train.Example")


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Number, wire type and value of each field of a message: an int, or bytes (of fixed numbers too)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, wire, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise Fault("is no tf.train.Example")
        if at + length > len(data):
            raise Fault("is no tf.train.Example")
        yield key >> 3, wire, data[at : at + length]
        at += length
