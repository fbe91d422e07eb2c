"""One websocket to a policy server, and the thread in which all of them live.

The thread keeps every wait bounded: whatever the network or the server does, an answer or a UserError comes in time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from vla.spec import Spec, UserError
from vla.wire import PROTOCOL, VERSION, decode, encode

LARGEST_REPLY = 64 * 2**20


class Loop:
    """An asyncio loop in a thread of its own; `run` waits for a coroutine from any other thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="remote policy", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it some time, for whoever cannot wait."""
        asyncio.run_coroutine_threadsafe(work, self.loop)


class Connection:
    """A server's ear for one world. `metadata` is what it said first."""

    metadata: dict[Any, Any]

    def __init__(self, socket: ClientConnection, url: str, timeout_s: float):
        self.socket, self.url, self.timeout_s, self.busy = socket, url, timeout_s, False

    @classmethod
    async def open(cls, url: str, token: str | None, spec: Spec | None, timeout_s: float) -> Connection:
        """Connect, and with a server of ours agree on version and spec; raises UserError with the reason against it."""
        headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
        try:
            async with asyncio.timeout(timeout_s):
                socket = await connect(
                    url,
                    additional_headers=headers,
                    compression=None,
                    max_size=LARGEST_REPLY,
                    ping_interval=None,  # a server that compiles its network may be deaf for longer than a ping may take
                    open_timeout=None,
                    close_timeout=1,
                    proxy=None,
                )
        except InvalidStatus as error:
            reason = f"answered {error.response.status_code} {error.response.reason_phrase}"
            mend = "give policy.token or set VLA_TOKEN" if error.response.status_code == 401 else "check its address"
            raise UserError(f"the server at {url} {reason}: {mend}.") from error
        except InvalidURI as error:
            raise UserError(f"url {url!r} is not a websocket's: give ws://host:port.") from error
        except TimeoutError as error:
            raise UserError(f"the server at {url} did not answer within {timeout_s:g} s: check its address.") from error
        except (OSError, InvalidHandshake) as error:
            raise UserError(f"the server at {url} cannot be reached ({error}): start vla-serve there.") from error
        connection = cls(socket, url, timeout_s)
        try:
            connection.metadata = await connection._receive(asyncio.timeout(timeout_s))
            if connection.ours:
                await connection._agree(spec)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def ours(self) -> bool:
        """Whether the server speaks our protocol; else it is taken for one of openpi's."""
        return self.metadata.get("protocol") == PROTOCOL

    @property
    def usable(self) -> bool:
        """Whether the next question can be put through it."""
        return not self.busy and self.socket.close_code is None

    async def ask(self, message: Mapping[str, Any]) -> tuple[dict[Any, Any], float]:
        """The server's reply and the milliseconds until it came; raises UserError. Afterwards it may not be `usable`."""
        begin, self.busy = time.perf_counter(), True
        deadline = asyncio.timeout(self.timeout_s)
        try:
            async with deadline:
                await self.socket.send(encode(message))
        except TimeoutError as error:
            raise self._late() from error
        except ConnectionClosed as error:
            raise self._lost(error) from error
        reply = await self._receive(asyncio.timeout_at(deadline.when()))
        self.busy = False
        return reply, 1e3 * (time.perf_counter() - begin)

    async def close(self) -> None:
        """Say goodbye, if the server takes it."""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.socket.close()
        except TimeoutError:
            self.socket.transport.abort()

    async def _agree(self, spec: Spec | None) -> None:
        if (theirs := self.metadata.get("version")) != VERSION:
            raise UserError(
                f"the server at {self.url} speaks version {theirs!r} of the protocol but this side {VERSION}: update one."
            )
        await self.ask({"hello": {"version": VERSION, "spec": None if spec is None else spec.to_dict()}})

    async def _receive(self, deadline: asyncio.Timeout) -> dict[Any, Any]:
        try:
            async with deadline:
                frame = await self.socket.recv()
        except TimeoutError as error:
            raise self._late() from error
        except ConnectionClosed as error:
            raise self._lost(error) from error
        if isinstance(frame, str):
            self.busy = False
            raise UserError(f"the server at {self.url} says: {frame}")
        return decode(frame)

    def _late(self) -> UserError:
        self.socket.transport.abort()  # an answer that still comes would be taken for that to the next question
        return UserError(
            f"the server at {self.url} did not answer within {self.timeout_s:g} s: look after it, or raise policy.timeout_s."
        )

    def _lost(self, error: WebSocketException) -> UserError:
        return UserError(f"the connection to {self.url} is lost ({error}): see what the server says, and begin again.")
