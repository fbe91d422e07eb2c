"""Everything that a policy server should survive: damaged, lying, oversized and cut messages, and no messages at all.

`storm` sends so many and waits for what comes of each; it raises where nothing does. Sockets are raw and messages go out in
bursts, so that the server has more work with them than the sender:

    connection    burst of messages, hello | burst of messages, hello | ...      BURST at a time, one reply to each
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from vla.serving.server import PENALTY_S

PATIENCE_S = 300
"""Longest wait for an answer, on a machine that may be busy with other things."""
BURST = 20
"""Messages that are on their way at once on a connection."""
CONNECTIONS = 16
RAW_EVERY = 200
"""For so many messages, one connection that is no websocket or breaks its rules."""
HELLO = msgpack.packb({"hello": {"version": 1}})
HARNESS_HELLO = msgpack.packb({"type": "hello", "payload": {"protocol_version": 1}, "seq": 77, "timestamp": 0.0})
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
POLICY_VIOLATION = (1008).to_bytes(2, "big")
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
    kind = rng.randrange(8)
    if rng.random() < 0.01:  # rarely, because it takes long: large ones, and what ends the connection
        if rng.random() < 0.5:
            return b"\xdc\x10\x00" + rng.choice((b"\x80", b"\xa2ab", b"\xdc\x10\x00")) * rng.choice((4096, 100_000))
        return msgpack.packb({**valid, "hello": rng.choice((None, {}, {"version": 1, "spec": wild(rng)}, {"version": 2}))})
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
        return b"\xdc\x10\x00" + rng.choice((b"\x80", b"\xa2ab", b"\xdc\x10\x00")) * 10
    message = dict(valid)
    if kind == 5:
        message[rng.choice((*valid, "seed", "foresee"))] = wild(rng)
        return msgpack.packb(message)
    if kind == 6:
        del message[rng.choice((*valid,))]
        return msgpack.packb(message)
    whole = bytearray(msgpack.packb(message))
    for _ in range(rng.choice((1, 1, 3, 10))):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])


async def storm(port: int, count: int, valid: dict[Any, Any], seed: int = 0) -> Counter[str]:
    """Send `count` messages over CONNECTIONS connections, every fourth of which speaks the harness's protocol.

    Gives how many were refused with a sentence, answered (damage can miss what matters), met by the end of the connection.
    """
    found: Counter[str] = Counter()
    shares = [count // CONNECTIONS + (k < count % CONNECTIONS) for k in range(CONNECTIONS)]
    await asyncio.gather(*(_sender(port, share, valid, CONNECTIONS * seed + k, found) for k, share in enumerate(shares)))
    return found


async def _sender(port: int, count: int, valid: dict[Any, Any], seed: int, found: Counter[str]) -> None:
    rng, connection, harness = random.Random(seed), None, seed % 4 == 3
    waiting: deque[bytes | str] = deque()
    done = strays = 0
    while done < count:
        if done >= strays * RAW_EVERY:
            strays += 1
            await _raw(port, rng)
            found["raw connections"] += 1
        while len(waiting) < min(BURST, count - done):
            waiting.append(frame(rng, valid))
        async with asyncio.timeout(PATIENCE_S):
            while connection is None:
                connection = await Connection.open(port, harness)
            came, over = await connection.burst(list(waiting)[:BURST])
        found += came
        done += came.total()
        for _ in range(came.total()):
            waiting.popleft()
        if over:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


class Connection:
    """A websocket by hand: as little work as possible for this side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, harness: bool) -> None:
        self.reader, self.writer, self.harness = reader, writer, harness
        self.bytes = b""

    @classmethod
    async def open(cls, port: int, harness: bool = False) -> Connection | None:
        """A connection that was greeted, or None if all places are taken at the moment."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connection = cls(reader, writer, harness)
        writer.write(handshake(port, "/vla-eval" if harness else "/"))
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 101 " in answer and (harness or (await connection.replies())[0][0] == BINARY):
                return connection
        except (OSError, asyncio.IncompleteReadError):
            pass
        connection.close()
        await asyncio.sleep(0.01)
        return None

    async def ask(self, message: bytes) -> bytes:
        """The reply to one message."""
        self.writer.write(masked(message))
        ((_, reply),) = await self.replies()
        return reply

    async def burst(self, messages: Sequence[bytes | str]) -> tuple[Counter[str], bool]:
        """What came of the messages from the first on, and whether the connection is over; then some may be left."""
        self.writer.write(b"".join([masked(m) for m in (*messages, HARNESS_HELLO if self.harness else HELLO)]))
        await asyncio.sleep(BURST * PENALTY_S)  # the server takes its time, too, and replies one by one wake this side often
        found: Counter[str] = Counter()
        while True:
            try:
                came = await self.replies()
            except (OSError, EOFError):
                came = [(CLOSE, b"")]
            for kind, reply in came:
                if kind == CLOSE:
                    found["connection ended"] += 1
                    found["refused"] -= reply[:2] == POLICY_VIOLATION  # that one was told why before
                    return found, True
                if self.harness and b"harness_version" in reply:  # some of the harness's messages have no answer
                    found["answered"] += len(messages) - found.total()
                    return found, False
                found["refused" if kind == TEXT or (self.harness and b"error" in reply) else "answered"] += 1
            if not self.harness and found.total() > len(messages):  # with the answer to the hello
                found["answered"] -= 1
                return found, False

    async def replies(self) -> list[tuple[int, bytes]]:
        """What has come, at least one frame: (kind, payload). Raises EOFError at the end."""
        while not (found := list(self._parsed())):
            piece = await self.reader.read(1 << 16)
            if not piece:
                raise EOFError
            self.bytes += piece
        return found

    def _parsed(self) -> Iterator[tuple[int, bytes]]:
        begin = 0
        while len(self.bytes) >= begin + 2:
            size, start = self.bytes[begin + 1], begin + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                size = int.from_bytes(self.bytes[begin + 2 : start], "big")
            if len(self.bytes) < start + size:
                break
            kind, payload = self.bytes[begin] & 15, self.bytes[start : start + size]
            if kind == PING:
                self.writer.write(masked(payload, PONG))
            else:
                yield kind, payload
            begin = start + size
        self.bytes = self.bytes[begin:]

    def close(self) -> None:
        self.writer.transport.abort()


def masked(message: bytes | str, kind: int = BINARY) -> bytes:
    """A client's frame. The mask is zero, which the rules allow."""
    kind, data = (TEXT, message.encode()) if isinstance(message, str) else (kind, message)
    if len(data) < 126:
        size = bytes([128 + len(data)])
    else:
        size = b"\xfe" + len(data).to_bytes(2, "big") if len(data) < 1 << 16 else b"\xff" + len(data).to_bytes(8, "big")
    return bytes([128 + kind]) + size + bytes(4) + data


def handshake(port: int, path: str = "/") -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def _raw(port: int, rng: random.Random) -> None:
    """Open a socket, do something wrong, hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    good = handshake(port)
    wrongs: Sequence[bytes] = (
        rng.randbytes(200),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 20_000,
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        good[: rng.randrange(len(good))],
        good + rng.randbytes(100),
        good + b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(100),  # a message of 4 exabytes
        good + b"\x82\x05hello",  # not masked
        good + b"\x02\x81\0\0\0\0x" * 50,  # begins a message anew, and anew
        good + b"\x82\xfe\xff\xff\0\0\0\0" + bytes(10),  # half a message
        good + b"\x89\xfe\x00\xff" + bytes(300),  # a ping that is too long
        good + b"\x88\x82\0\0\0\0\0\0",  # closes with an impossible code
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
