"""Requests of many clients, answered by one policy in one batch at a time.

    clients    a     b  c              a  b  c
    policy     [ gather ][ act(a,b,c) ][ ...      one thread; what arrives meanwhile is the next batch

A request holds its own world's memory, so the batch is put together from whoever asks. A policy computes a world the same
way whoever its neighbours are (vla.policy), so an action does not depend on the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla.policy import Discerning, Memory
from vla.rollout import merge, select
from vla.spec import TASK, UserError

ACTIVE_S = 1.0
"""A client that has asked within this time is worth waiting for."""


@dataclass(eq=False)
class Request:
    """What one client asks for one world, and what comes of it.

    client: whose it is. kind: "act", "remember" or "foresee". observation: that world's, without a leading N; empty to foresee.
    seed: begin a fresh memory with it; None goes on with `memory`.
    """

    client: int
    kind: str
    observation: dict[str, Any]
    memory: Memory = None
    seed: int | None = None
    asked: float = field(default_factory=time.perf_counter)
    actions: np.ndarray | None = None
    imagined: dict[str, np.ndarray] | None = None
    error: Exception | None = None
    timing: dict[str, Any] = field(default_factory=dict)

    def signature(self) -> tuple[Any, ...]:
        """Requests with the same one can be answered in one batch."""
        return (self.kind, *((name, np.shape(value)) for name, value in sorted(self.observation.items())))


class Batcher:
    """Asks `policy` on behalf of everybody, in a thread of its own. `run` must be running; `close` ends the thread.

    gather_s: how long a batch waits for clients that have not asked yet but did so a moment ago. One alone never waits.
    refuse: instructions that a discerning policy refuses (vla.policy.Discerning) are answered with its reason.
    """

    def __init__(self, policy: Any, gather_s: float, refuse: bool = False):
        self.policy, self.gather_s = policy, gather_s
        self._refuse = refuse and isinstance(policy, Discerning)
        self._active: dict[int, float] = {}
        self._thread = ThreadPoolExecutor(1, "policy")
        self._waiting: list[tuple[Request, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def answer(self, request: Request) -> Request:
        """The request with its answer; raises UserError where the policy could not give one."""
        done = asyncio.get_running_loop().create_future()
        self._active[request.client] = request.asked
        self._waiting.append((request, done))
        self._arrived.set()
        await done
        if isinstance(request.error, UserError):
            raise request.error
        if request.error is not None:
            raise UserError(f"the policy failed ({type(request.error).__name__}: {request.error!s:.200}).") from request.error
        return request

    async def run(self) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            batch, self._waiting = self._waiting, []
            requests = [request for request, _ in batch]
            try:
                await loop.run_in_executor(self._thread, self._compute, requests)
            except Exception as error:  # a fault of ours ends these clients, not the server
                for request in requests:
                    request.error = error
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    def _compute(self, requests: Sequence[Request]) -> None:
        for request in requests if self._refuse else ():
            if TASK in request.observation and (reason := self.policy.refusal(request.observation[TASK])) is not None:
                request.error = UserError(reason)
        compute(self.policy, [request for request in requests if request.error is None])

    async def _gather(self) -> None:
        self._arrived.clear()
        if not self._waiting:
            await self._arrived.wait()
        lately = time.perf_counter() - ACTIVE_S
        self._active = {client: asked for client, asked in self._active.items() if asked > lately}
        try:
            async with asyncio.timeout(self.gather_s):
                while len(self._waiting) < len(self._active):
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        self._thread.shutdown()


def compute(policy: Any, requests: Sequence[Request]) -> None:
    """Fill in the answers: one call of the policy for all that ask for the same with pictures of the same size."""
    groups: dict[Any, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.signature(), []).append(request)
    for group in groups.values():
        _in_one_batch(policy, group)


def _in_one_batch(policy: Any, group: Sequence[Request]) -> None:
    """Where a batch fails, each request is tried alone, so that nobody pays for another's observation."""
    start = time.perf_counter()
    try:
        for request in group:
            if request.seed is not None:
                request.memory, request.seed = policy.begin([request.seed]), None
        memory = merge([request.memory for request in group])
        names = group[0].observation
        observation = {name: _stack([request.observation[name] for request in group]) for name in names}
        actions = imagined = None
        if group[0].kind == "act":
            actions, memory = policy.act(observation, memory)
            _require_finite(policy, actions)
        elif group[0].kind == "remember":
            memory = policy.remember(observation, memory)
        else:
            imagined = policy.foresee(memory)
    except Exception as error:
        if len(group) == 1:
            group[0].error = error
        else:
            for request in group:
                _in_one_batch(policy, [request])
        return
    seconds = time.perf_counter() - start
    for row, request in enumerate(group):
        request.memory = select(memory, [row])
        request.actions = None if actions is None else actions[row]
        request.imagined = None if imagined is None else {camera: frames[row] for camera, frames in imagined.items()}
        request.timing = {"wait_ms": 1e3 * (start - request.asked), "infer_ms": 1e3 * seconds, "batch": len(group)}


def _stack(rows: Sequence[Any]) -> Any:
    return list(rows) if isinstance(rows[0], str) else np.stack(rows)


def _require_finite(policy: Any, actions: np.ndarray) -> None:
    if not np.isfinite(actions).all():
        entry = int(np.argwhere(~np.isfinite(actions))[0][-1])
        raise UserError(
            f"the policy's action is not finite in entry {entry} ({policy.spec.action[entry].name}): "
            "check the checkpoint's weights and the observation."
        )
