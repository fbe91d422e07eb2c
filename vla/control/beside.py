"""Inference beside the loop: a policy in a process of its own, asked ahead of need, its chunks joined by time stamp.

    loop      k        k+1       k+2       k+3       k+4       k+5
    asked     obs k ........................> chunk c of observation k arrives
    command   (hold)   (hold)    (hold)    c[3]      c[4]      c[5]      c[j] is due at cycle k + j; c[0] to c[2] are past
    asked                                                      obs k+5 ...

`Beside` is a `Policy` for the rollout loop, with chunks of one action: the one that is due. How chunks are joined is an
executor's (vla/executor.py), as in every rollout; here it is kept in step with the clock. It never waits: what the child
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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vla.control import child
from vla.control.cadence import Cadence
from vla.control.events import Board, Events
from vla.control.paced import CYCLE, TIME
from vla.executor import Executor, require_continuing, shown
from vla.policy import Memory, Observation
from vla.spec import IMAGE_PREFIX, STATE, TASK, Spec, UserError, image_key

START_S = 300.0
"""Seconds that a policy may take to be loaded and warmed up."""
WARM_UP = 3
WAIT_S = 1.0
"""Seconds that the first chunk of an instruction may take before the policy counts as late."""
FORECAST = 10
"""The next answer is expected to take as long as the slowest of so many last ones."""


class Beside:
    """The policy that `build()` makes, in a process of its own. `start` must be called first; `close` ends the process.

    build: a picklable function. hz: of the control loop. executor: when to ask, and how to join the chunks; a question waits
    for the answer to the last one. delay_s: added to every answer, for measurements.
    imagine: a policy that can is asked after each chunk what it expects to see; that goes to the board, as the note `imagined`.
    """

    history = False

    def __init__(
        self,
        build: Callable[[], Any],
        hz: float,
        board: Board,
        events: Events,
        cadence: Cadence,
        executor: Executor,
        delay_s: float = 0.0,
        imagine: bool = False,
    ) -> None:
        self._build, self._delay, self._imagine = build, delay_s, imagine
        self._board, self._events, self._cadence = board, events, cadence
        self._executor, self._period = executor, 1e9 / hz
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._episode = self._follows = 0
        self._number, self._due_ns, self._took_ms = 0, 0, 0.0  # of the chunk that came last
        self._next_ns = 0.0  # cycle whose action the executor gives next
        self._ages: deque[int] = deque([0], FORECAST)  # in control steps, of the chunks when they came
        self._served = False  # whether this instruction has had an action
        self._asked_ns = 0  # cycle of the last observation that was asked about, or of the instruction's beginning
        self._pending = False  # whether an answer is awaited
        self._dead: str | None = None
        self._judged: dict[str, str | None] = {}

    def start(self) -> None:
        """Build the policy in its process and warm it up; RuntimeError or UserError with what went wrong there."""
        settings = (self._build, self._executor, self._delay, self._imagine)
        self.process, self._connection = child.start(_child, settings, "policy")
        try:
            if not self._connection.poll(START_S):
                raise RuntimeError(f"the policy was not ready after {START_S:.0f} s")
            kind, value = self._connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"the policy's process ended with status {self.process.exitcode} while it was built") from None
        except BaseException:  # Ctrl-C, say
            self.process.kill()
            raise
        if kind != "ready":
            raise UserError(value) if kind == "mistake" else RuntimeError(f"the policy could not be built:\n{value}")
        self.spec, self._every, ahead = value
        self._answers = ("chunk",) if ahead is None else ("chunk", "imagined")
        self._ahead_ns = round((ahead or 0) * self._period)
        self._courier = threading.Thread(target=self._carry, name="courier", daemon=True)
        self._courier.start()

    def begin(self, seeds: Sequence[int]) -> Memory:
        """A new instruction: what was planned for the last one is forgotten."""
        self._episode += 1
        return {"episode": np.array([self._episode]), "seed": np.array([seeds[0]])}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """The action due in this cycle, (1, 1, A); where there is none the board demands a hold."""
        now = int(observation[CYCLE][0])
        if int(memory["episode"][0]) != self._follows:
            self._follows = int(memory["episode"][0])
            self._executor.begin(0)
            self._next_ns, self._asked_ns, self._served = now, now, False
            self._outbox.put(("begin", self._follows, int(memory["seed"][0]), None))
        for _ in range(round((now - self._next_ns) / self._period)):
            self._executor.action(0)  # of a cycle that was missed: it is past
        self._next_ns = now
        self._collect(now)
        nothing = np.zeros((1, 1, len(self.spec.action)), np.float32)
        if self._dead or not self.process.is_alive():
            self._board.demand("policy_dead", error=self._dead or f"status {self.process.exitcode}")
            return nothing, memory
        if not observation[TASK][0]:
            self._board.demand("idle")
            return nothing, memory
        self._ask(observation, now)
        action, self._next_ns = self._executor.action(0), now + self._period
        if action is None:
            ago = (now - self._asked_ns) / 1e9
            self._board.demand("policy_late" if self._served or ago > WAIT_S else "waiting", asked_ago_s=ago)
            return nothing, memory
        self._served = True
        place = round((now - self._due_ns) / self._period)
        self._board.note(chunk=self._number, chunk_index=place, inference_ms=self._took_ms)
        return action[None, None], memory

    def judge(self, sentence: str) -> str | None:
        """Why the policy refuses an instruction, "" if it does not; None as long as its process has not said."""
        if sentence not in self._judged:
            self._judged[sentence] = None
            self._outbox.put(("judge", self._follows, sentence, None))
        self._collect(time.monotonic_ns())  # here, too: nothing is asked of `act` while a person drives
        return self._judged[sentence]

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        raise NotImplementedError("every observation goes through act")

    def _ask(self, observation: Observation, now: int) -> None:
        """Hand over the observation: to be answered, or, for a policy with history, to be kept in mind."""
        asking = self._outbox.empty() and not self._pending and self._executor.asks(0)
        if not asking and not self._every:
            return
        wanted = {k: v for k, v in observation.items() if k.startswith(IMAGE_PREFIX) or k in (STATE, TASK)}
        if not asking:
            self._outbox.put(("remember", self._follows, wanted, None))
            return
        lag = max(0, now - int(observation[TIME][0])) // int(self._period)  # whole periods that the reading is older
        if self._executor.continues:
            wanted |= shown([self._executor.rest(0, max(self._ages), lag)], len(self.spec.action))
        self._asked_ns, self._pending = now, True
        self._outbox.put(("act", self._follows, wanted, (now - int(lag * self._period), time.monotonic_ns())))

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
            if kind == "verdict":
                reason, sentence = value
                self._judged[sentence] = reason
                continue
            due_ns, asked_ns = stamps
            if kind == "imagined":
                self._board.note(imagined={"time_ns": due_ns + self._ahead_ns, "frames": value[0]})
                continue
            self._pending = False
            chunk, arrived_ns = value
            self._cadence.add("inference", arrived_ns - asked_ns)
            if episode != self._follows:
                continue  # for an instruction that is no longer followed
            if not np.isfinite(chunk).all():
                bad = np.argwhere(~np.isfinite(chunk))[0].tolist()
                self._board.demand("action_not_finite", place=bad, due=due_ns)
                continue
            self._number, self._due_ns, self._took_ms = self._number + 1, due_ns, (arrived_ns - asked_ns) / 1e6
            self._ages.append(round((now - due_ns) / self._period))
            self._executor.give(0, chunk, self._ages[-1])

    def _carry(self) -> None:
        """The courier's thread: letters to the child and back, so that the loop never waits for a pipe."""
        try:
            while (letter := self._outbox.get()) is not None:
                kind, episode, value, stamps = letter
                self._connection.send((kind, value))
                for wanted in {"act": self._answers, "judge": ("verdict",)}.get(kind, ()):
                    said, answer = self._connection.recv()
                    if said != wanted:
                        self._inbox.put(("dead", episode, answer, None))
                        return
                    told = value if kind == "judge" else time.monotonic_ns()
                    self._inbox.put((said, episode, (answer, told), stamps))
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


def _child(build: Callable[[], Any], executor: Executor, delay_s: float, imagine: bool, connection: Any) -> None:
    """The policy's process: letters ("begin", seed), ("remember" or "act", observation), ("judge", sentence), in order."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # they stop the loop, and the loop ends this process
    try:
        policy = build()
        require_continuing(executor, policy)
        ahead = policy.foresight_steps if imagine and hasattr(policy, "foresee") else None
        observation = example(policy.spec)
        for _ in range(WARM_UP):
            chunk, memory = policy.act(observation, policy.begin([0]))
            if ahead is not None:
                policy.foresee(memory)
            if executor.continues:  # the way that later questions take is to be warm, too
                observation |= shown([(chunk[0], np.ones(len(chunk[0]), np.float32))], chunk.shape[2])
        connection.send(("ready", (policy.spec, bool(policy.history), ahead)))
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
                elif kind == "judge":
                    refusal = getattr(policy, "refusal", None)  # only a Discerning policy has it
                    connection.send(("verdict", (refusal(value) if refusal else None) or ""))
                else:
                    chunk, memory = policy.act(value, memory)
                    if delay_s:
                        time.sleep(delay_s)
                    connection.send(("chunk", np.asarray(chunk[0], np.float32)))
                    if ahead is not None:  # afterwards: an action never waits for a picture
                        connection.send(("imagined", {camera: f[0] for camera, f in policy.foresee(memory).items()}))
            except Exception:
                connection.send(("fault", traceback.format_exc(limit=-3)))
                return
