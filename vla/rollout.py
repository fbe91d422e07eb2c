"""The one loop: N worlds and one policy. Evaluation, collection and a robot differ only in the scripts they play.

A script says what one world does, as a generator: each `yield` hands the loop a command and gets back the world's state
after it. Two commands exist:

    state = yield Reset(options)     put this world somewhere; the others go on
    state = yield follow             one control step under `follow`; yielding the same object again goes on with it,
                                     a new object starts with fresh policy memory and an empty plan

A job is a script with a name and, optionally, a recorder. Each world plays one job after another until there are no more.
Whatever a job does depends on the job alone, never on its neighbours: memory, plan and seeds are per world.

    one control step:  scripts -> look (only where someone will) -> policy (only who asks, in one batch) -> record -> step

With `delay_s` the policy is slow, without any clock: what it is asked at step k arrives at step k + d, d the delay in whole
control steps, and the next question waits for the answer, as beside a robot's loop (vla/control/beside.py). A world without
an action in the meantime holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from vla.executor import Executor, require_continuing, shown
from vla.policy import Memory, Observation, Policy
from vla.spec import TASK, UserError, require_match


@dataclass(frozen=True, eq=False)
class Reset:
    """Put a world into a start state. `options` are this world's rows of the world's reset options."""

    options: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Follow:
    """Act on an instruction. `seed` is what the policy may draw from; `disturb` bends an action (A,) before it is applied."""

    instruction: str
    seed: int = 0
    disturb: Callable[[np.ndarray], np.ndarray] | None = None


Script = Generator[Reset | Follow, Any, Any]


class Recorder(Protocol):
    """Sees every control step of a job: the observation, the action chosen in it (clean), and what was imagined from it."""

    imagines: bool
    """Whether it wants to see imagined frames."""

    def step(self, observation: Observation, action: np.ndarray, imagined: Mapping[str, np.ndarray] | None) -> None:
        """One world's row of everything; `imagined` is given at the steps at which the policy was asked."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """A script for one world, with a name that comes back with its result."""

    key: Hashable
    script: Script
    recorder: Recorder | None = None


@dataclass
class Timing:
    """Where the time of a rollout goes: seconds by part, over `steps` control steps (of one world each) and `queries`.

    held: at so many of the steps no action was planned."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    queries: int = 0
    held: int = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def add(self, other: Timing) -> None:
        """Take in another process's times."""
        self.steps += other.steps
        self.queries += other.queries
        self.held += other.held
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def table(self) -> dict[str, float]:
        """Milliseconds per control step by part and in all, and per query of the policy."""
        steps = max(self.steps, 1)
        rows = {f"{name}_ms_per_step": 1e3 * s / steps for name, s in self.seconds.items()}
        rows["all_ms_per_step"] = 1e3 * sum(self.seconds.values()) / steps
        rows["policy_ms_per_query"] = 1e3 * self.seconds.get("policy", 0.0) / max(self.queries, 1)
        return rows


def select(memory: Memory, rows: Sequence[int]) -> Memory:
    """The memory of some of the worlds, in the order given."""
    if memory is None:
        return None
    if isinstance(memory, Mapping):
        return {name: select(value, rows) for name, value in memory.items()}
    return memory[list(rows)]


def merge(memories: Sequence[Memory]) -> Memory:
    """One memory for worlds that had their own; `select` takes it apart again."""
    first = memories[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {name: merge([memory[name] for memory in memories]) for name in first}
    return torch.cat(list(memories)) if isinstance(first, torch.Tensor) else np.concatenate(memories)


def rollout(
    world: VectorEnv,
    policy: Policy,
    jobs: Callable[[int], Job | None],
    executor: Executor,
    timing: Timing | None = None,
    delay_s: float = 0.0,
) -> Iterator[tuple[Job, Any]]:
    """Play jobs until there are none left; yields each job with what its script returned, as soon as it is over.

    jobs: called with the index of an idle world, gives its next job or None. delay_s: how long the policy's answers take,
    simulated; the world must be able to hold then (`holding() -> actions (N, A)`).
    Raises UserError where the specs do not match, the policy cannot do what the executor wants, or an action is not finite.
    """
    spec = world.vla_spec  # type: ignore[attr-defined]
    require_match(policy.spec, spec, "the policy", "the world")
    require_continuing(executor, policy)
    delay = delay_steps(delay_s, spec.control_hz)
    if delay and not hasattr(world, "holding"):
        raise UserError(f"the delay is {delay_s:g} s but the world ({type(world).__name__}) cannot hold meanwhile: use 0.")
    yield from _Loop(world, policy, jobs, executor, timing or Timing(), delay).run()


def delay_steps(delay_s: float, hz: float | None) -> int:
    """The control step, counted from the question's, at which an answer after `delay_s` can be used."""
    if not 0.0 <= delay_s < math.inf:
        raise UserError(f"the inference delay is {delay_s} s: give a number of at least 0.")
    return math.ceil(delay_s * (hz or 0.0) - 1e-6)


@dataclass
class _Lane:
    """What one world is busy with."""

    job: Job
    follow: Follow = field(default_factory=lambda: Follow(""))
    memory: Memory = None
    steps: int = 0
    wait: int = 0  # control steps until the policy has answered
    answer: np.ndarray | None = None  # the chunk that arrives then, None if nobody wants it any more


class _Loop:
    def __init__(self, world: Any, policy: Any, jobs, executor: Executor, timing: Timing, delay: int):
        self.world, self.policy, self.jobs = world, policy, jobs
        self.executor, self.timing, self.delay = executor, timing, delay
        self.count = world.num_envs
        self.lanes: dict[int, _Lane] = {}  # the worlds that are busy
        self.observe = getattr(world, "observe", None)
        self.finished: list[tuple[Job, Any]] = []

    def run(self) -> Iterator[tuple[Job, Any]]:
        if self.observe:
            self.world.look(np.zeros(self.count, bool))  # pictures are taken by `observe`, when it is known whose
        self.observation, _ = self.world.reset()
        self._advance(range(self.count))
        while self.lanes:
            actions = self._act()
            with self.timing.part("world"):
                self.observation, *_ = self.world.step(actions)
            self.timing.steps += len(self.lanes)
            self._advance(sorted(self.lanes))
            yield from self.finished
            self.finished.clear()
        yield from self.finished

    def _advance(self, worlds: Sequence[int]) -> None:
        """Tell these worlds' scripts the state and collect what they want next, resetting until all want to act."""
        while worlds:
            with self.timing.part("script"):
                states = self.world.states(worlds) if hasattr(self.world, "states") else [None] * len(worlds)
                commands = {i: self._send(i, state) for i, state in zip(worlds, states, strict=True)}
            resets = {i: command for i, command in commands.items() if isinstance(command, Reset)}
            if resets:
                with self.timing.part("reset"):
                    self._reset(resets)
            for i, command in commands.items():
                if isinstance(command, Follow) and command is not self.lanes[i].follow:
                    self.lanes[i].follow = command
                    self.lanes[i].memory = self.policy.begin([command.seed])
                    self.lanes[i].answer = None
                    self.executor.begin(i)
            worlds = list(resets)

    def _send(self, i: int, state: Any) -> Reset | Follow | None:
        """The next command for a world, from its script or from the next job's; None where there is none."""
        while True:
            if i not in self.lanes:
                job, state = self.jobs(i), None  # a script starts by being sent nothing
                if job is None:
                    return None
                self.lanes[i] = _Lane(job)
            job = self.lanes[i].job
            try:
                return job.script.send(state)
            except StopIteration as stop:
                self.finished.append((job, stop.value))
                del self.lanes[i]

    def _reset(self, resets: dict[int, Reset]) -> None:
        mask = np.zeros(self.count, bool)
        mask[list(resets)] = True
        options: dict[str, Any] = {"reset_mask": mask}
        for i, reset in resets.items():
            for name, row in reset.options.items():
                options.setdefault(name, np.zeros((self.count, *np.shape(row))))[i] = row
        seeds = [resets[i].seed if i in resets else None for i in range(self.count)]
        some = any(seed is not None for seed in seeds)
        self.observation, _ = self.world.reset(seed=seeds if some else None, options=options)

    def _act(self) -> np.ndarray:
        """One action per world, float32 (N, A); zeros where a world has nothing to do."""
        self._deliver()
        asking = [i for i, lane in self.lanes.items() if not lane.wait and self.executor.asks(i)]
        watching = [i for i in self.lanes if i not in asking] if self.policy.history else []
        self._look(asking + watching)
        imagined: dict[int, Mapping[str, np.ndarray]] = {}
        with self.timing.part("policy"):
            if asking:
                imagined = self._query(asking)
            if watching:
                self._keep(watching, self.policy.remember(self._rows(watching), self._memory(watching)))
            self.timing.queries += len(asking)
        actions = np.zeros((self.count, len(self.world.vla_spec.action)), np.float32)
        with self.timing.part("record"):
            for i, lane in self.lanes.items():
                action = self.executor.action(i)
                if action is None:
                    self.timing.held += 1
                    action = np.asarray(self.world.holding()[i], np.float32)
                self._require_finite(i, action)
                if lane.job.recorder is not None:
                    row = {name: value[0] for name, value in self._rows([i]).items()}
                    lane.job.recorder.step(row, action, imagined.get(i))
                actions[i] = lane.follow.disturb(action) if lane.follow.disturb else action
                lane.steps += 1
        return actions

    def _deliver(self) -> None:
        """Let a control step of waiting pass, and hand over the answers that are there now."""
        for i, lane in self.lanes.items():
            lane.wait = max(0, lane.wait - 1)
            if not lane.wait and lane.answer is not None:
                self.executor.give(i, lane.answer, self.delay)
                lane.answer = None

    def _look(self, attending: Sequence[int]) -> None:
        """Take the pictures that somebody will see: a policy with cameras where it attends, and recorders."""
        if not self.observe:
            return
        seen = np.array([i in self.lanes and self.lanes[i].job.recorder is not None for i in range(self.count)])
        if self.policy.spec.cameras:
            seen[list(attending)] = True
        if seen.any():
            with self.timing.part("look"):
                self.observation = self.observe(seen)

    def _query(self, worlds: Sequence[int]) -> dict[int, Mapping[str, np.ndarray]]:
        """Ask for chunks; returns the imagined frames of the worlds whose recorders want them."""
        rows = self._rows(worlds)
        if self.executor.continues:
            rests = [self.executor.rest(i, self.delay) for i in worlds]
            rows |= shown(rests, len(self.world.vla_spec.action))
        chunks, memory = self.policy.act(rows, self._memory(worlds))
        self._keep(worlds, memory)
        for row, i in enumerate(worlds):
            if self.delay:
                self.lanes[i].answer, self.lanes[i].wait = chunks[row], self.delay
            else:
                self.executor.give(i, chunks[row])
        curious = [row for row, i in enumerate(worlds) if (r := self.lanes[i].job.recorder) is not None and r.imagines]
        if not curious or not hasattr(self.policy, "foresee"):
            return {}
        frames = self.policy.foresee(select(memory, curious))
        return {worlds[row]: {camera: f[k] for camera, f in frames.items()} for k, row in enumerate(curious)}

    def _memory(self, worlds: Sequence[int]) -> Memory:
        return merge([self.lanes[i].memory for i in worlds])

    def _keep(self, worlds: Sequence[int], memory: Memory) -> None:
        for row, i in enumerate(worlds):
            self.lanes[i].memory = select(memory, [row])

    def _rows(self, worlds: Sequence[int]) -> dict[str, Any]:
        rows: dict[str, Any] = {name: value[list(worlds)] for name, value in self.observation.items()}
        rows[TASK] = [self.lanes[i].follow.instruction for i in worlds]
        return rows

    def _require_finite(self, i: int, action: np.ndarray) -> None:
        if not np.isfinite(action).all():
            entry = int(np.flatnonzero(~np.isfinite(action))[0])
            raise UserError(
                f"the policy's action in world {i} at step {self.lanes[i].steps} of job {self.lanes[i].job.key!r} is "
                f"{action[entry]} in entry {entry} ({self.world.vla_spec.action[entry].name}): "
                "check the checkpoint's weights and statistics."
            )
