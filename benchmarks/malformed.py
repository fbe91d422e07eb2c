"""Everything that a policy server should survive: damaged, lying, oversized and cut messages, and no messages at all.

`storm` sends so many from several connections at once and waits for an answer to each; it raises where none comes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PATIENCE_S = 120
"""Longest wait for an answer, on a machine that may be busy with other things."""
HARNESS_HELLO = {"type": "hello", "payload": {"protocol_version": 1}, "seq": 77, "timestamp": 0.0}
DTYPES = ("|u1", "<f4", "<f8", "|O", "V8", "<U3", ">f4", "<c16", "m8[s]", "f4", "", "object", "|b1")
WILD = (None, True, -1, 0, 2**63, -(2**63), 1e308, float("nan"), float("-inf"), "", "x", b"", b"\0", [], {}, [[]], "\0" * 50)


def wild(rng: random.Random, depth: int = 0) -> Any:
    """Any value that msgpack carries, often an array that lies about itself."""
    kind = rng.randrange(8)
    if kind == 0 and depth < 4:
        return {wild_key(rng): wild(rng, depth + 1) for _ in range(rng.randrange(5))}
    if kind == 1 and depth < 4:
        return [wild(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 2:
        shape = [rng.choice((0, 1, 2, 3, 7, 255, -1, 2**31, 2**63 - 1)) for _ in range(rng.randrange(10))]
        data = rng.choice((rng.randbytes(rng.randrange(64)), "text", None, 5, []))
        return {b"__ndarray__": True, b"data": data, b"dtype": rng.choice(DTYPES), b"shape": rng.choice((shape, None, 3, "2"))}
    if kind == 3:
        return {b"__npgeneric__": True, b"data": rng.choice(WILD), b"dtype": rng.choice(DTYPES)}
    if kind == 4:
        return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.randrange(20)))
    if kind == 5:
        return rng.randbytes(rng.choice((0, 3, 3000)))
    return rng.choice(WILD)


def wild_key(rng: random.Random) -> Any:
    return rng.choice(("hello", "reset", "seed", "remember", "foresee", "task", "a", "", b"__ndarray__", b"shape", 5, None))


def frame(rng: random.Random, valid: dict[Any, Any]) -> bytes | str:
    """One message that is most likely wrong: nonsense, or `valid` after something has happened to it."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randbytes(rng.choice((0, 1, 10, 300)))
    if kind == 1:
        return rng.choice(("", "text", "\u2603" * 100))
    if kind == 2:
        return msgpack.packb(wild(rng))
    if kind == 3:
        return (
            rng.choice((b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff")) * 500
        )
    if kind == 4:
        return msgpack.packb({**valid, "hello": rng.choice((None, {}, {"version": 1, "spec": wild(rng)}, {"version": 2}))})
    if kind == 5:
        return b"\xdc\x10\x00" + rng.choice((b"\x80", b"\xa2ab", b"\xdc\x10\x00")) * rng.choice((10, 4096, 100_000))
    message = dict(valid)
    if kind == 6:
        message[rng.choice((*valid, "seed", "foresee"))] = wild(rng)
        return msgpack.packb(message)
    if kind == 7:
        del message[rng.choice((*valid,))]
        return msgpack.packb(message)
    whole = bytearray(msgpack.packb(message))
    for _ in range(rng.choice((1, 1, 3, 10))):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])


async def storm(port: int, count: int, valid: dict[Any, Any], seed: int = 0, connections: int = 8) -> Counter[str]:
    """Send `count` messages and, for every twenty of them, a connection that is no websocket or breaks its rules.

    Gives how many were refused with a sentence, answered (damage can miss what matters), met by the end of the connection.
    """
    found: Counter[str] = Counter()
    shares = [count // connections + (k < count % connections) for k in range(connections)]
    await asyncio.gather(*(_sender(port, share, valid, seed + k, found) for k, share in enumerate(shares)))
    return found


async def _sender(port: int, count: int, valid: dict[Any, Any], seed: int, found: Counter[str]) -> None:
    rng, connection = random.Random(seed), None
    harness = seed % 4 == 3
    for number in range(count):
        if number % 20 == 0:
            await _raw(port, rng)
            found["raw connections"] += 1
        while connection is None:
            connection = await _connected(port, harness)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await connection.send(frame(rng, valid))
                found[await (_harness_answer(connection) if harness else _answer(connection))] += 1
        except ConnectionClosed:
            found["connection ended"] += 1
            connection = None
    if connection is not None:
        await connection.close()


async def _connected(port: int, harness: bool) -> ClientConnection | None:
    """A connection that was greeted, or None if all places are taken at the moment."""
    try:
        path = "/vla-eval" if harness else "/"
        connection = await connect(f"ws://127.0.0.1:{port}{path}", compression=None, proxy=None, open_timeout=PATIENCE_S)
        if not harness:
            await connection.recv()
    except (ConnectionClosed, InvalidHandshake):
        await asyncio.sleep(0.01)
        return None
    return connection


async def _answer(connection: ClientConnection) -> str:
    return "refused" if isinstance(await connection.recv(), str) else "answered"


async def _harness_answer(connection: ClientConnection) -> str:
    """Some of the harness's messages have no answer: what comes before that to a hello is this message's."""
    await connection.send(msgpack.packb(HARNESS_HELLO))
    kinds = []
    while "hello" not in kinds:
        kinds.append(msgpack.unpackb(await connection.recv())["type"])
    return "refused" if "error" in kinds else "answered"


async def _raw(port: int, rng: random.Random) -> None:
    """Open a socket, do something wrong, hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
    ]
    handshake = "\r\n".join([*lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]).encode()
    wrongs: Sequence[bytes] = (
        rng.randbytes(200),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 20_000,
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        handshake[: rng.randrange(len(handshake))],
        handshake + rng.randbytes(100),
        handshake + b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(100),  # a message of 4 exabytes
        handshake + b"\x82\x05hello",  # not masked
        handshake + b"\x02\x81\0\0\0\0x" * 50,  # begins a message anew, and anew
        handshake + b"\x82\xfe\xff\xff\0\0\0\0" + bytes(10),  # half a message
        handshake + b"\x89\xfe\x00\xff" + bytes(300),  # a ping that is too long
        handshake + b"\x88\x82\0\0\0\0\0\0",  # closes with an impossible code
    )
    try:
        writer.write(rng.choice(wrongs))
        await writer.drain()
        async with asyncio.timeout(rng.choice((0.001, 0.05))):
            await reader.read(1 << 16)
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()
