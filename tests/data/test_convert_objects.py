import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.data.convert.files import Fault, inside
from vla.data.convert.objects import load_objects

NUMBERS = [np.float32(0.5), np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.array(["ab", "c"])]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=20,
)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@given(plain)
def test_plain_containers_come_back(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "plain.npy"
    holder = np.empty((), object)
    holder[()] = {"value": value, "numbers": NUMBERS}
    np.save(file, holder, allow_pickle=True)
    found = load_objects(file)
    assert found["value"] == value
    assert found["numbers"][0] == 0.5
    for ours, theirs in zip(found["numbers"][1:], NUMBERS[1:], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Evil(os.system, ("touch hacked",)), "posix.system"),
        (Evil(eval, ("1",)), "eval"),
        (Evil(np.load, ("x",)), "load"),
        (Evil(np.ndarray, ((1 << 40,),)), "ndarray"),
        (Evil(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1 << 40,), np.dtype("O"), False, [])), "shape"),
        (Evil(np.dtype, ("O8", False, True), (3, "|", None, ("a",), {}, 8, 1, 0)), "_Dtype"),
        ({1, 2}, "set"),
        (os.getcwd, "getcwd"),
    ],
)
def test_nothing_that_a_pickle_names_is_called(tmp_path, monkeypatch, thing, named):
    monkeypatch.chdir(tmp_path)
    holder = np.empty((), object)
    holder[()] = {"a": thing}
    np.save("bad.npy", holder, allow_pickle=True)
    with pytest.raises(Fault, match=named):
        load_objects("bad.npy")
    assert os.listdir(tmp_path) == ["bad.npy"]


def test_a_few_bytes_take_no_memory(tmp_path):
    head = np.lib.format.magic(1, 0) + b"v\0{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(120)
    file = tmp_path / "bomb.npy"
    huge_memo = b"\x80\x04]r" + (0xFFFFFFF0).to_bytes(4, "little") + b"."
    long_bytes = b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"."
    laughs = (
        b"\x80\x04" + b"]\x94" + b"".join(b"]\x94(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(60)) + b"."
    )
    for bomb in (huge_memo, long_bytes, laughs):
        file.write_bytes(head + bomb)
        with pytest.raises(Fault):
            load_objects(file)
    file.write_bytes(
        np.lib.format.magic(1, 0) + b"v\0{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(120)
    )
    with pytest.raises(Fault):
        load_objects(file)


@given(st.data())
def test_damaged_files_are_faults(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(file, {"language": {"ann": ["open it"] * 3, "emb": np.ones((3, 1, 4))}, "indx": [(1, 2), (np.int64(3), 4)]})  # type: ignore
    whole = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for place in data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=4)):
        if whole:
            whole[place] = data.draw(st.integers(0, 255))
    file.write_bytes(whole)
    try:
        load_objects(file)
    except Fault:
        return


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", "a\0b"])
def test_names_that_climb_out(tmp_path, name):
    with pytest.raises(Fault, match="climbs out"):
        inside(tmp_path, name)


def test_names_inside(tmp_path):
    assert inside(tmp_path, "a/../b/c.mp4") == tmp_path / "b/c.mp4"
    assert inside(tmp_path, "..a") == tmp_path / "..a"
