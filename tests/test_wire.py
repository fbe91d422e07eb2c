"""The wire: openpi's encoding both ways, and nothing but a UserError for what is wrong."""

import tracemalloc
from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from vla.spec import UserError
from vla.wire import DTYPES, ITEMS, decode, encode

arrays = hnp.arrays(st.sampled_from(sorted(DTYPES)), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
scalars = st.sampled_from(sorted(DTYPES)).flatmap(lambda dtype: hnp.from_dtype(np.dtype(dtype)))
values = st.one_of(
    arrays, scalars, st.text(), st.binary(), st.booleans(), st.none(), st.integers(-(2**63), 2**64 - 1), st.floats()
)
messages = st.dictionaries(st.text(), st.one_of(values, st.lists(values, max_size=3), st.dictionaries(st.text(), values)))


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic) and type(a) is not np.float64:  # which is a float, and goes as one
        shape = type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        return shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b or a != a


@given(messages)
def test_round_trip(message):
    assert same(message, decode(encode(message)))


@given(messages)
def test_openpi_reads_and_writes_the_same(message):
    assert same(message, msgpack_numpy.unpackb(encode(message)))
    assert same(message, decode(msgpack_numpy.packb(message)))


def test_the_frame_is_openpis_to_the_byte():
    message = {"actions": np.arange(6, dtype=np.float32).reshape(2, 3), "ms": np.float64(1.5)}
    assert encode(message) == msgpack_numpy.packb(message)


@pytest.mark.parametrize(
    "bad", [np.array([object()]), np.array(["text"]), np.zeros(2, complex), np.zeros(2, ">f4"), {1}, 2**70]
)
def test_what_the_wire_does_not_carry(bad):
    with pytest.raises((TypeError, OverflowError)):
        encode({"x": bad})


def sent(dtype="<f4", data=bytes(16), shape=(2, 2), **more):
    return msgpack.packb({"x": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}})


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (sent("|O"), "dtype '|O' is not allowed"),
        (sent("<U4"), "dtype '<U4' is not allowed"),
        (sent("V16"), "dtype 'V16' is not allowed"),
        (sent([("a", "<f4")]), "is not allowed"),
        (sent("float32"), "dtype 'float32' is not allowed"),
        (sent(data=bytes(15)), "do not make <f4 of shape"),
        (sent(data="text"), "do not make"),
        (sent(shape=(2**20, 2**20, 2**24)), "do not make"),
        (sent(shape=(-2, -2)), "something else than sizes"),
        (sent(shape=(True, 4)), "something else than sizes"),
        (sent(shape=(2**63,)), "something else than sizes"),
        (sent(shape=(1,) * 9), "at most 8"),
        (sent(shape=4), "at most 8"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "8", b"dtype": "<f4"}}), "is a str"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "cannot be read"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1e300, b"dtype": "<f4"}}), "overflow"),
        (msgpack.packb({"x": msgpack.ExtType(5, b"x")}), "extension type 5"),
        (msgpack.packb({1: 2}), "cannot be read"),
        (msgpack.packb([1]), "is a list: send a map"),
        (msgpack.packb(None), "is a NoneType: send a map"),
        (msgpack.packb({"x": 1}) + b"\0", "cannot be read"),
        (b"", "cannot be read"),
        (b"\xc1", "cannot be read"),
        (b"\x91" * 3000, "cannot be read"),
        (msgpack.packb([0] * (ITEMS + 1)), "cannot be read"),
        (msgpack.packb({"x": [[0] * 100] * (ITEMS // 100 + 1)}), f"more than {ITEMS} entries"),
        ("text", "text frame"),
    ],
)
def test_malformed(frame, reason):
    with pytest.raises(UserError, match=r".") as error:
        decode(frame)
    assert reason in str(error.value)
    assert len(str(error.value)) < 400


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_read(frame):
    with suppress(UserError):
        assert isinstance(decode(frame), dict)


@given(messages, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3))
def test_damaged_messages_are_refused_or_read(message, changes, cut):
    frame = bytearray(encode({"observation": np.zeros((2, 2, 3), np.uint8), **message}))
    for place, byte in changes:
        frame[place % len(frame)] = byte
    with suppress(UserError):
        assert isinstance(decode(bytes(frame[: len(frame) - cut])), dict)


@pytest.mark.parametrize("unit", [b"\x80", b"\x90", b"\xa2ab", b"\xcd\x12\x34", b"\xc0"])
def test_a_frame_costs_little_more_memory_than_its_size(unit):
    count = 2_000_000
    frame = b"\xdd" + count.to_bytes(4, "big") + unit * count
    inner = 4000
    rows = b"\xdc" + inner.to_bytes(2, "big") + unit * inner
    many = b"\xdc" + (2000).to_bytes(2, "big") + rows * 2000
    for bomb in (frame, many):
        tracemalloc.start()
        with pytest.raises(UserError):
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6
