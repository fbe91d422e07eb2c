"""Inference beside the loop: a policy in a process of its own, asked ahead of need, its chunks joined by time stamp.

    loop      k        k+1       k+2       k+3       k+4       k+5
    asked     obs k ........................> chunk c of observation k arrives
    command   (hold)   (hold)    c[2]      c[3]      c[4]      c[5]      c[j] is due at cycle k + j; c[0], c[1] are past
    asked                                                      obs k+5 ...

`Beside` is a `Policy` for the rollout loop, with chunks of one action: the one that is due. It never waits: what the child
has not answered yet is not there, and without an action the arm is held (`waiting` before the first chunk, `policy_late`
after it). A child that died is the fault `policy_dead`.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.control import child
from vla.control.cadence import Cadence
from vla.control.events import Board, Events
from vla.control.paced import CYCLE, TIME
from vla.policy import Memory, Observation
from vla.spec import IMAGE_PREFIX, STATE, TASK, Spec, UserError, image_key

START_S = 300.0
"""Seconds that a policy may take to be loaded and warmed up."""
WARM_UP = 3
WAIT_S = 1.0
"""Seconds that the first chunk of an instruction may take before the policy counts as late."""


@dataclass(frozen=True)
class Chunk:
    """Actions (horizon, A), the first due at cycle time `due_ns`; `number` counts chunks, `seconds` is what it took."""

    number: int
    due_ns: int
    actions: np.ndarray
    seconds: float


class Plan:
    """The chunks at hand, and the action of a cycle out of them.

    join: "switch" takes the newest chunk that reaches the cycle; "ensemble" averages all that do, the oldest the loudest
    (weights exp(-decay * rank)), as `vla.executor.TemporalEnsemble`.
    """

    def __init__(self, period_ns: float, join: str = "switch", decay: float = 0.01) -> None:
        if join not in ("switch", "ensemble"):
            raise UserError(f"join is {join!r}: use switch or ensemble.")
        self.period_ns, self.join, self.decay = period_ns, join, decay
        self.chunks: list[Chunk] = []

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def clear(self) -> None:
        self.chunks.clear()

    def at(self, cycle_ns: int) -> tuple[np.ndarray, Chunk, int] | None:
        """The action (A,) due at a cycle, the newest chunk that has a say, and the action's place in it; None if there is none.

        Chunks whose actions are all past are dropped.
        """
        placed = [(round((cycle_ns - c.due_ns) / self.period_ns), c) for c in self.chunks]
        placed = [(k, c) for k, c in placed if k < len(c.actions)]
        self.chunks = [c for _, c in placed]
        placed = [(k, c) for k, c in placed if k >= 0]
        if not placed:
            return None
        place, newest = placed[-1]
        if self.join == "switch":
            return newest.actions[place], newest, place
        weights = np.exp(-self.decay * np.arange(len(placed)))
        mean = np.average([c.actions[k] for k, c in placed], axis=0, weights=weights)
        return mean.astype(np.float32), newest, place


class Beside:
    """The policy that `build()` makes, in a process of its own. `start` must be called first; `close` ends the process.

    build: a picklable function. hz: of the control loop. execute: cycles between two observations that are asked about (the
    next is not asked before the last is answered). delay_s: added to every answer, for measurements.
    """

    history = False

    def __init__(
        self,
        build: Callable[[], Any],
        hz: float,
        board: Board,
        events: Events,
        cadence: Cadence,
        execute: int = 5,
        join: str = "switch",
        delay_s: float = 0.0,
    ) -> None:
        self._build, self._delay = build, delay_s
        self._board, self._events, self._cadence = board, events, cadence
        self._plan, self._execute = Plan(1e9 / hz, join), execute
        self._period = 1e9 / hz
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._episode = self._follows = self._number = 0
        self._served = False  # whether this instruction has had an action
        self._asked_ns: int | None = None  # cycle of the last observation that was asked about
        self._pending = False  # whether an answer is awaited
        self._dead: str | None = None

    def start(self) -> None:
        """Build the policy in its process and warm it up; RuntimeError or UserError with what went wrong there."""
        self.process, self._connection = child.start(_child, (self._build, self._delay), "policy")
        try:
            if not self._connection.poll(START_S):
                raise RuntimeError(f"the policy was not ready after {START_S:.0f} s")
            kind, value = self._connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the policy's process ended with status {self.process.exitcode} while it was built") from None
        if kind != "ready":
            raise UserError(value) if kind == "mistake" else RuntimeError(f"the policy could not be built:\n{value}")
        self.spec, self._every = value
        self._courier = threading.Thread(target=self._carry, name="courier", daemon=True)
        self._courier.start()

    def begin(self, seeds: Sequence[int]) -> Memory:
        """A new instruction: what was planned for the last one is forgotten."""
        self._episode += 1
        return {"episode": np.array([self._episode]), "seed": np.array([seeds[0]])}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """The action due in this cycle, (1, 1, A); where there is none the board demands a hold."""
        now = int(observation[CYCLE][0])
        self._collect(now)
        nothing = np.zeros((1, 1, len(self.spec.action)), np.float32)
        if self._dead or not self.process.is_alive():
            self._board.demand("policy_dead", error=self._dead or f"status {self.process.exitcode}")
            return nothing, memory
        if not observation[TASK][0]:
            self._plan.clear()
            self._board.demand("idle")
            return nothing, memory
        if int(memory["episode"][0]) != self._follows:
            self._follows = int(memory["episode"][0])
            self._plan.clear()
            self._asked_ns, self._served = None, False
            self._outbox.put(("begin", self._follows, int(memory["seed"][0]), None))
        self._ask(observation, now)
        if (due := self._plan.at(now)) is None:
            ago = (now - (self._asked_ns or now)) / 1e9
            self._board.demand("policy_late" if self._served or ago > WAIT_S else "waiting", asked_ago_s=ago)
            return nothing, memory
        action, chunk, place = due
        self._served = True
        self._board.note(chunk=chunk.number, chunk_index=place, inference_ms=1e3 * chunk.seconds)
        return action[None, None], memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        raise NotImplementedError("every observation goes through act")

    def _ask(self, observation: Observation, now: int) -> None:
        """Hand over the observation: to be answered, or, for a policy with history, to be kept in mind."""
        answered = self._outbox.empty() and not self._pending
        due = self._asked_ns is None or now - self._asked_ns > (self._execute - 0.5) * self._period
        if not (answered and due) and not self._every:
            return
        wanted = {k: v for k, v in observation.items() if k.startswith(IMAGE_PREFIX) or k in (STATE, TASK)}
        lag = max(0, now - int(observation[TIME][0])) // int(self._period)  # whole periods that the reading is older
        due_ns = now - int(lag * self._period)
        if answered and due:
            self._asked_ns, self._pending = now, True
            self._outbox.put(("act", self._follows, wanted, (due_ns, time.monotonic_ns())))
        else:
            self._outbox.put(("remember", self._follows, wanted, None))

    def _collect(self, now: int) -> None:
        """Take in what the child has answered."""
        while True:
            try:
                kind, episode, value, stamps = self._inbox.get_nowait()
            except queue.Empty:
                return
            if kind == "dead":
                self._dead = value
                return
            self._pending = False
            due_ns, asked_ns = stamps
            chunk, arrived_ns = value
            self._cadence.add("inference", arrived_ns - asked_ns)
            if episode != self._follows:
                continue  # for an instruction that is no longer followed
            if not np.isfinite(chunk).all():
                bad = np.argwhere(~np.isfinite(chunk))[0].tolist()
                self._board.demand("action_not_finite", place=bad, due=due_ns)
                continue
            self._number += 1
            self._plan.add(Chunk(self._number, due_ns, chunk, (arrived_ns - asked_ns) / 1e9))

    def _carry(self) -> None:
        """The courier's thread: letters to the child and back, so that the loop never waits for a pipe."""
        try:
            while (letter := self._outbox.get()) is not None:
                kind, episode, value, stamps = letter
                self._connection.send((kind, value))
                if kind == "act":
                    said, answer = self._connection.recv()
                    if said != "chunk":
                        self._inbox.put(("dead", episode, answer, None))
                        return
                    self._inbox.put(("chunk", episode, (answer, time.monotonic_ns()), stamps))
        except (EOFError, OSError) as error:
            self._inbox.put(("dead", 0, repr(error), None))

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._outbox.put(None)
        self.process.kill()
        self.process.join()


def example(spec: Spec) -> dict[str, Any]:
    """An observation of one world as the Spec says, of zeros."""
    pictures = {image_key(c): np.zeros((1, *size, 3), np.uint8) for c, size in spec.cameras.items()}
    return {**pictures, STATE: np.zeros((1, len(spec.state)), np.float32), TASK: [""]}


def _child(build: Callable[[], Any], delay_s: float, connection: Any) -> None:
    """The policy's process: letters ("begin", seed), ("remember", observation), ("act", observation), in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the loop, and the loop ends this process
    try:
        policy = build()
        for _ in range(WARM_UP):
            policy.act(example(policy.spec), policy.begin([0]))
        connection.send(("ready", (policy.spec, bool(policy.history))))
    except UserError as error:
        connection.send(("mistake", str(error)))
        return
    except Exception:
        connection.send(("fault", traceback.format_exc()))
        return
    memory = policy.begin([0])
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            kind, value = connection.recv()
            try:
                if kind == "begin":
                    memory = policy.begin([value])
                elif kind == "remember":
                    memory = policy.remember(value, memory)
                else:
                    chunk, memory = policy.act(value, memory)
                    if delay_s:
                        time.sleep(delay_s)
                    connection.send(("chunk", np.asarray(chunk[0], np.float32)))
            except Exception:
                connection.send(("fault", traceback.format_exc(limit=-3)))
                return
