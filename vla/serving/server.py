"""The server: who may connect, how many, how much they may send, and what happens to those who do not listen.

    client --frame--> [2 frames at most] --> session --request--> batcher --> policy
           <--reply--                    <--

One frame of a client is worked on at a time and at most two more wait, unparsed; then its socket is not read. A reply that
is not taken within `slow_s` ends the connection. So memory is bounded by the number of clients, whatever they do.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla.serving.batcher import Batcher
from vla.serving.session import Mismatch, Session
from vla.serving.vla_eval import HarnessSession
from vla.spec import UserError

log = logging.getLogger(__name__)
_silent = logging.getLogger(f"{__name__}.websockets")
_silent.setLevel(logging.CRITICAL + 1)  # a stranger's bad handshake is not worth a traceback each

POLICY_VIOLATION, TRY_AGAIN_LATER, INTERNAL_ERROR = 1008, 1013, 1011
SHORTEST_TOKEN = 16
PENALTY_S = 0.002
"""How long a client waits after a mistake, so that one that sends nothing else leaves the processor to the others."""
HARNESS_PATH = "/vla-eval"
HEALTH_PATHS = {"/healthz": "OK\n", "/health": '{"status": "ok"}\n'}


class Server:
    """Serves one policy to many clients over websockets.

    title: the policy in words. host: where to listen; anything but this machine's loopback demands a token, which clients
    send as `Authorization: Api-Key <token>`. port: 0 takes a free one. clients: how many at once. max_megabytes: size of a
    message, checked before it is read. slow_s: how long a reply may wait to be taken. gather_ms, refuse: see Batcher. names,
    harness_names, execute: see Session and HarnessSession.
    Raises UserError for settings that are not safe.
    """

    def __init__(
        self,
        policy: Any,
        *,
        title: str = "policy",
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        clients: int = 64,
        max_megabytes: float = 8.0,
        slow_s: float = 5.0,
        gather_ms: float = 2.0,
        refuse: bool = False,
        names: Mapping[str, str] | None = None,
        harness_names: Mapping[str, str] | None = None,
        execute: int = 5,
    ):
        if token is None and not is_loopback(host):
            raise UserError(f"host is {host!r}, which others can reach: set a token in VLA_TOKEN, or use host=127.0.0.1.")
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise UserError(f"the token has {len(token)} characters: use at least {SHORTEST_TOKEN} random ones.")
        for name, value in (("clients", clients), ("max_megabytes", max_megabytes), ("slow_s", slow_s), ("execute", execute)):
            if value <= 0:
                raise UserError(f"{name} is {value}: give a number above 0.")
        self.host, self.port, self.title = host, port, title
        self._open, self.limit, self.max_bytes, self.slow_s = 0, clients, int(1e6 * max_megabytes), slow_s
        self.batcher = Batcher(policy, gather_ms / 1e3, refuse)
        self._credential = None if token is None else f"Api-Key {token}".encode()
        self._names, self._harness_names, self._execute = names or {}, harness_names or {}, execute

    @property
    def guarded(self) -> bool:
        """Whether clients need a token."""
        return self._credential is not None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Serve while the body runs; gives the port. Raises UserError if it is taken."""
        try:
            server = await listen(
                self._client,
                self.host,
                self.port,
                origins=[None],  # browsers name an origin: no web page may drive a robot
                process_request=self._knock,
                compression=None,
                max_size=self.max_bytes,
                max_queue=2,
                open_timeout=10,
                ping_interval=20,
                ping_timeout=20,
                close_timeout=2,
                server_header=None,
                logger=_silent,
            )
        except OSError as error:
            raise UserError(f"cannot listen on {self.host}:{self.port} ({error}): choose another host or port.") from error
        work = asyncio.create_task(self.batcher.run())
        try:
            async with server:
                yield next(iter(server.sockets)).getsockname()[1]
        finally:
            work.cancel()
            self.batcher.close()

    def _knock(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a health check, refuse who has no token; None lets the others in."""
        path = request.path.partition("?")[0]
        if path in HEALTH_PATHS:
            return connection.respond(HTTPStatus.OK, HEALTH_PATHS[path])
        if self._credential is not None:
            given = request.headers.get_all("Authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), self._credential):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "send the server's token: Authorization: Api-Key <token>\n")
        return None

    async def _client(self, connection: ServerConnection) -> None:
        """Talk to one client until either end has enough."""
        if self._open >= self.limit:
            await connection.close(TRY_AGAIN_LATER, f"all {self.limit} places are taken: come back later")
            return
        self._open += 1
        try:
            await self._entertain(connection)
        finally:
            self._open -= 1

    async def _entertain(self, connection: ServerConnection) -> None:
        name = "{}:{}".format(*connection.remote_address[:2])
        log.info("%s: connected", name)
        code = None
        try:
            await self._talk(connection, self._session(connection))
            reason = "left"
        except ConnectionClosed as closed:
            frame = closed.sent or closed.rcvd
            reason = frame.reason if frame and frame.reason else "connection lost"
        except TimeoutError:
            code, reason = POLICY_VIOLATION, f"too slow: did not take a reply within {self.slow_s:g} s"
        except Mismatch as mismatch:
            code, reason = POLICY_VIOLATION, str(mismatch)
        except Exception:
            code, reason = INTERNAL_ERROR, "a fault of the server"
            log.exception("%s: %s", name, reason)
        log.info("%s: %s", name, reason)
        if code is not None:
            await _drop(connection, code, reason)

    def _session(self, connection: ServerConnection) -> Session:
        assert connection.request is not None
        if connection.request.path.partition("?")[0] == HARNESS_PATH:
            return HarnessSession(self.batcher, self._harness_names, self.title, self._execute)
        return Session(self.batcher, self._names, self.title)

    async def _talk(self, connection: ServerConnection, session: Session) -> None:
        if (greeting := session.greeting()) is not None:
            await self._send(connection, greeting)
        async for frame in connection:
            try:
                reply = await session.answer(frame)
            except UserError as error:
                await self._send(connection, session.complaint(str(error)))
                if isinstance(error, Mismatch):
                    raise
                await asyncio.sleep(PENALTY_S)
                continue
            if reply is not None:
                await self._send(connection, reply)

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        async with asyncio.timeout(self.slow_s):
            await connection.send(frame)


async def _drop(connection: ServerConnection, code: int, reason: str) -> None:
    """Close with a reason, which a close frame cuts to 123 bytes; hang up on who does not even take that."""
    try:
        async with asyncio.timeout(2):
            await connection.close(code, reason.encode()[:123].decode(errors="ignore"))
    except TimeoutError:
        connection.transport.abort()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
