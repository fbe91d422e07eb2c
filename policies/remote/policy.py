"""`vla.policy.Policy` on one side, a policy server on the other: ours (`vla-serve`) or any that speaks openpi's protocol."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policies.remote.connection import Connection, Loop
from vla.policy import Memory, Observation
from vla.spec import ENVIRONMENT_STATE, PLAN, PLAN_WEIGHT, STATE, TASK, Spec, UserError, image_key

Answer = tuple[dict[Any, Any], float]
"""A server's reply, and the milliseconds until it came."""


class Place:
    """One world's place at the server: a connection, which keeps the memory there. `step` counts what was sent."""

    def __init__(self, connection: Connection, seed: int):
        self.connection, self.seed, self.step = connection, seed, 0


class Remote:
    """Every world has a connection of its own, so that the server batches them like other clients.

    spec: of the world that will be acted in; a server of ours refuses one that does not fit its policy. With openpi's
    servers, which say nothing of what they read, it is believed. statistics: not used, the server has them.
    url: ws://host:port. token: sent as Authorization: Api-Key. timeout_s: longest wait for a connection or an answer.
    openpi: {"names": our name of a feature -> theirs, "size": side of the pictures to ask a world for}, for their servers.

    Where the server's policy imagines, `foresee` and `foresight_steps` are here, too. Memory is {"place", "step"}: a world's
    true memory is at the server and only goes forward, so an old value cannot be used again. When nothing refers to a place
    any more, its connection serves another.
    Raises UserError where the server is away, late, unwilling or different from what is expected.
    """

    def __init__(
        self,
        spec: Spec | None = None,
        statistics: Any = None,
        *,
        url: str,
        token: str | None = None,
        timeout_s: float = 10.0,
        openpi: Mapping[str, Any],
    ):
        del statistics
        self._loop = Loop()
        self._where = (url, token, spec, timeout_s)
        first: Connection = self._loop.run(Connection.open(*self._where))
        self._free = [first]
        self.metadata = first.metadata
        self.timing: list[dict[str, Any]] = []
        """What the last answers took, one for each world: the server's own figures and `round_trip_ms`."""
        self._names: Mapping[str, str] | None = None if first.ours else openpi["names"]
        self.spec = Spec.from_dict(first.metadata["spec"]) if first.ours else _believed(spec or Spec(), openpi)
        self.history = bool(first.metadata["history"]) if first.ours else False
        self.continues = first.ours and bool(first.metadata.get("continues", False))  # older servers do not say
        if first.ours and first.metadata["foresight_steps"] is not None:  # then this meets `vla.policy.Imagining`, too
            self.foresight_steps, self.foresee = int(first.metadata["foresight_steps"]), self._foresee

    def begin(self, seeds: Sequence[int]) -> Memory:
        """Places for `len(seeds)` fresh worlds; the server is told with their first observations."""
        places = np.empty(len(seeds), object)
        for i, seed in enumerate(seeds):
            places[i] = self._place(int(seed))
        return {"place": places, "step": np.zeros(len(seeds), np.int64)}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Actions from the server: float32 (N, horizon, A), and the new memory."""
        replies = self._ask(memory, self._messages(observation, len(memory["place"])))
        chunks = [np.asarray(reply.get("actions"), np.float32) for reply in replies]
        width = len(self.spec.action)
        for chunk in chunks:
            if chunk.ndim != 2 or (width and chunk.shape[1] != width):
                raise UserError(
                    f"the server's actions have shape {chunk.shape} but (horizon, {width}) is expected: use another."
                )
        return np.stack(chunks), _later(memory)

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        """Show the server an observation at which no chunk is wanted."""
        messages = self._messages(observation, len(memory["place"]))
        self._ask(memory, [{**message, "remember": True} for message in messages])
        return _later(memory)

    def _foresee(self, memory: Memory) -> dict[str, np.ndarray]:
        """Imagined frames after the last `act`: camera -> uint8 (N, H, W, 3)."""
        answers = self._loop.run(_together([place.connection.ask({"foresee": True}) for place in memory["place"]]))
        frames = [reply["imagined"] for reply, _ in answers]
        return {camera: np.stack([frame[camera] for frame in frames]) for camera in frames[0]}

    def close(self) -> None:
        """Leave the server. Places that are still held end when they are dropped."""
        while self._free:
            self._loop.run(self._free.pop().close())

    def _place(self, seed: int) -> Place:
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                break
        else:
            connection = self._loop.run(Connection.open(*self._where))
        place = Place(connection, seed)
        weakref.finalize(place, _give_back, connection, self._free, self._loop).atexit = False
        return place

    def _messages(self, observation: Observation, count: int) -> list[dict[str, Any]]:
        """One message for each world: what the served policy reads, or whatever openpi's server has a name for."""
        spec, names = self.spec, self._names
        if names is None:
            vectors = {STATE: spec.state, ENVIRONMENT_STATE: spec.environment_state}
            read = [*map(image_key, spec.cameras), *(name for name, entries in vectors.items() if entries), TASK]
            read += [PLAN, PLAN_WEIGHT] if self.continues else []
            names = {name: name for name in read}
        return [{theirs: observation[name][i] for name, theirs in names.items() if name in observation} for i in range(count)]

    def _ask(self, memory: Memory, messages: Sequence[dict[str, Any]]) -> list[dict[Any, Any]]:
        """All worlds at once, so that the server can batch them."""
        places: list[Place] = list(memory["place"])
        for place, step in zip(places, memory["step"], strict=True):
            if place.step != step:
                raise UserError(f"a world's memory of step {step} was used again, but the server's is at {place.step}: go on.")
        for place, message in zip(places, messages, strict=True):
            if place.step == 0 and self._names is None:
                message.update(reset=True, seed=place.seed)
        answers = self._loop.run(_together([_step(place, message) for place, message in zip(places, messages, strict=True)]))
        self.timing = [{**reply.get("server_timing", {}), "round_trip_ms": ms} for reply, ms in answers]
        return [reply for reply, _ in answers]


def _believed(spec: Spec, openpi: Mapping[str, Any]) -> Spec:
    """The spec of a server that has none: what its names mention, and the rest as the world has it."""
    size = (int(openpi["size"]), int(openpi["size"]))
    cameras = {camera: size for camera in spec.cameras or _cameras(openpi["names"]) if image_key(camera) in openpi["names"]}
    return replace(spec, cameras=cameras, state=spec.state if STATE in openpi["names"] else (), environment_state=())


def _cameras(names: Mapping[str, str]) -> list[str]:
    return [name.removeprefix(image_key("")) for name in names if name.startswith(image_key(""))]


def _later(memory: Memory) -> Memory:
    return {"place": memory["place"], "step": memory["step"] + 1}


async def _step(place: Place, message: Mapping[str, Any]) -> Answer:
    answer = await place.connection.ask(message)
    place.step += 1
    return answer


async def _together(questions: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """Everybody's answers; the first failure is raised when all are in, so that no connection is left with one to come."""
    answers = await asyncio.gather(*questions, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers  # type: ignore[return-value]


def _give_back(connection: Connection, free: list[Connection], loop: Loop) -> None:
    if connection.usable:
        free.append(connection)
    else:
        loop.start(connection.close())
