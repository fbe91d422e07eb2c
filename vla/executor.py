"""How chunks of actions become one action per control step: a config choice for every policy.

    step        0   1   2   3   4   5   6   7   8   9
    chunk at 0  a0  a1  a2  a3  a4  a5  a6               horizon 7
    chunk at 5                      b0  b1  b2 ...

    receding horizon, execute 5:    a0 a1 a2 a3 a4 | b0 b1 b2 b3 b4 | ...
    temporal ensemble, every 1:     every chunk that reaches this step has a say, the oldest the loudest

Inference may take a while: what is asked at step 5 then arrives at step 7. Chunks are joined by the step at which an action
is due, so b0 and b1, which are past by then, are never executed, and the plan so far goes on until the answer is there:

    receding horizon, 2 late:       a0 a1 a2 a3 a4   a5 a6 | b2 b3 b4   ...       a jump from a6 to b2
    real-time chunking, 2 late:     the same, but the policy was shown a5 a6, and b0 b1 are a5 a6

An executor keeps state per world, so that worlds begin, ask and stop independently of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vla.spec import PLAN, PLAN_WEIGHT, UserError

Rest = tuple[np.ndarray, np.ndarray]
"""Actions (L, A) that are going to be executed, and how firmly a new chunk shall keep to them, (L,) in 0..1."""


class Executor(Protocol):
    """Turns the chunks of N worlds into actions; worlds are named by their index."""

    continues: bool
    """Whether the policy is shown the `rest` of the plan with every question, to go on from there."""

    def begin(self, world: int) -> None:
        """Forget what was planned for this world: a new instruction starts."""
        ...

    def asks(self, world: int) -> bool:
        """Whether a new chunk is wanted, asked for at this control step."""
        ...

    def rest(self, world: int, delay: int, age: int = 0) -> Rest:
        """What would be executed from `age` steps ago on, shown to a policy whose answer will be `delay` steps old."""
        ...

    def give(self, world: int, chunk: np.ndarray, age: int = 0) -> None:
        """Take a chunk, float32 (horizon, A), whose first action was due `age` steps ago."""
        ...

    def action(self, world: int) -> np.ndarray | None:
        """The action of this control step, float32 (A,), None where none is planned; time moves on for this world."""
        ...

    def describe(self) -> str:
        """The setting in words, for the record that goes with every score."""
        ...


class RecedingHorizon:
    """Ask at every `execute`-th step (earlier where a chunk is shorter) and switch to the new chunk as soon as it is there."""

    continues = False

    def __init__(self, execute: int = 5):
        if execute < 1:
            raise UserError(f"execute is {execute}: give at least 1 action to execute per query.")
        self.execute = int(execute)
        self._step: dict[int, int] = {}
        self._chunks: dict[int, list[tuple[int, np.ndarray]]] = {}
        """Of each world those that reach its present step, the oldest first: step at which the first action is due, chunk."""

    def begin(self, world: int) -> None:
        self._step[world] = 0
        self._chunks[world] = []

    def asks(self, world: int) -> bool:
        if not self._chunks[world]:
            return True
        since, chunk = self._chunks[world][-1]
        return self._step[world] - since >= min(self.execute, len(chunk))

    def rest(self, world: int, delay: int, age: int = 0) -> Rest:
        since, chunk = self._chunks[world][-1] if self._chunks[world] else (0, np.zeros((0, 0), np.float32))
        place = self._step[world] - age - since
        actions = chunk[place if place >= 0 else len(chunk) :]  # a plan that does not reach back so far is not shown
        return actions, prefix_weights(len(actions), delay)

    def give(self, world: int, chunk: np.ndarray, age: int = 0) -> None:
        if not len(chunk):
            raise UserError("the policy's chunk is empty: it must give at least one action.")
        self._chunks[world].append((self._step[world] - age, chunk))

    def action(self, world: int) -> np.ndarray | None:
        step = self._step[world]
        self._step[world] = step + 1
        self._chunks[world] = [(since, chunk) for since, chunk in self._chunks[world] if step - since < len(chunk)]
        said = [chunk[step - since] for since, chunk in self._chunks[world]]
        return self._join(said) if said else None

    def _join(self, said: Sequence[np.ndarray]) -> np.ndarray:
        """One action of what the chunks say, the oldest first."""
        return said[-1]

    def describe(self) -> str:
        return f"receding horizon, {self.execute} actions per query"


class TemporalEnsemble(RecedingHorizon):
    """Average what every chunk so far says about this step, with weights exp(-decay * age rank), the oldest first.

    The rule of Zhao et al. 2023 (ACT): weight 1 for the oldest chunk that still reaches this step, exp(-decay) for the
    next, and so on; `decay` 0.01 is theirs, 0 is the plain mean. The policy is asked at every `execute`-th step (1 there).
    """

    def __init__(self, execute: int = 1, decay: float = 0.01):
        super().__init__(execute)
        if not 0.0 <= decay < float("inf"):
            raise UserError(f"decay is {decay}: give a number of at least 0 for the temporal ensemble.")
        self.decay = decay

    def _join(self, said: Sequence[np.ndarray]) -> np.ndarray:
        weights = np.exp(-self.decay * np.arange(len(said)))
        return np.average(np.stack(said), axis=0, weights=weights).astype(np.float32)

    def describe(self) -> str:
        return f"temporal ensemble, decay {self.decay:g}, asked every {self.execute} steps"


class RealTime(RecedingHorizon):
    """Real-time chunking (Black, Galliker and Levine 2025): the policy continues the plan instead of making a new one.

    The actions that will be executed before its answer is there are given; the later ones it keeps to more and more loosely
    (`prefix_weights`). Only for policies that can (`vla.policy.Continuing`).
    """

    continues = True

    def describe(self) -> str:
        return f"real-time chunking, {self.execute} actions per query"


def prefix_weights(length: int, delay: int) -> np.ndarray:
    """How firmly a new chunk keeps to the `length` actions left of the plan when it comes `delay` steps late, (length,).

    Equation 5 of the paper: 1 for the first `delay`, which are executed anyway; then c (e^c - 1) / (e - 1), with c falling
    evenly from just under 1 to just over 0. What the new chunk adds after the plan's end is free.
    """
    places = np.arange(length)
    falling = np.clip((length - places) / (length - delay + 1), 0, 1) if delay < length else np.ones(length)
    return np.where(places < delay, 1.0, falling * np.expm1(falling) / np.expm1(1.0)).astype(np.float32)


def shown(rests: Sequence[Rest], entries: int) -> dict[str, np.ndarray]:
    """The rests of some worlds' plans as entries of an observation, padded to one length with actions that weigh nothing."""
    length = max(len(weights) for _, weights in rests)
    plan = np.zeros((len(rests), length, entries), np.float32)
    weight = np.zeros((len(rests), length), np.float32)
    for row, (actions, weights) in enumerate(rests):
        plan[row, : len(weights)] = actions.reshape(len(weights), entries)
        weight[row, : len(weights)] = weights
    return {PLAN: plan, PLAN_WEIGHT: weight}


def require_continuing(executor: Executor, policy: Any) -> None:
    """Raise UserError where the executor wants plans to be continued and the policy cannot."""
    if executor.continues and not getattr(policy, "continues", False):
        raise UserError(
            f"the executor ({executor.describe()}) wants the policy to continue a plan, but {type(policy).__name__} cannot "
            "with its present head: use executor=receding or ensemble, or a policy with a flow head."
        )
