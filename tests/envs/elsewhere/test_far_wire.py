"""What passes between a world's two sides: messages over a socket, arrays in shared memory."""

import contextlib
import socket

from hypothesis import given
from hypothesis import strategies as st

from envs.elsewhere.far import server

messages = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), messages, max_size=3))
def test_messages_arrive_as_they_were_sent(message):
    a, b = socket.socketpair()
    with a, b:
        server.send(a, message)
        assert server.receive(b, deadline=None) == message


@given(st.binary(max_size=200))
def test_wild_bytes_are_no_crash(data):
    a, b = socket.socketpair()
    with a, b:
        a.sendall(data)
        a.close()
        with contextlib.suppress(EOFError, ValueError):
            assert isinstance(server.receive(b), dict)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=3),
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 9), st.booleans(),
)  # fmt: skip
def test_arrays_in_memory_do_not_overlap(cameras, state, environment_state, action, expert):
    spec = {"cameras": cameras, "state": [0] * state, "environment_state": [0] * environment_state, "action": [0] * action}
    placed, size = server.layout(spec, expert)
    views = server.views(placed, bytearray(size))
    for k, view in enumerate(views.values()):
        view[...] = k + 1
    assert all((view == k + 1).all() for k, view in enumerate(views.values()))
