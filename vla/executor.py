"""How chunks of actions become one action per control step: a config choice for every policy.

    step        0   1   2   3   4   5   6   7   8   9
    chunk at 0  a0  a1  a2  a3  a4  .   .            horizon 7
    chunk at 5                      b0  b1  b2 ...

    receding horizon, execute 5:    a0 a1 a2 a3 a4 | b0 b1 b2 b3 b4 | ...
    temporal ensemble, every 1:     every chunk that reaches this step has a say, the oldest the loudest

An executor keeps state per world, so that worlds begin, ask and stop independently of one another.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from vla.spec import UserError


class Executor(Protocol):
    """Turns the chunks of N worlds into actions; worlds are named by their index."""

    def begin(self, world: int) -> None:
        """Forget what was planned for this world: a new instruction starts."""
        ...

    def asks(self, world: int) -> bool:
        """Whether a new chunk is needed before this world's next action."""
        ...

    def give(self, world: int, chunk: np.ndarray) -> None:
        """Take a chunk, float32 (horizon, A), whose first action is due now."""
        ...

    def action(self, world: int) -> np.ndarray:
        """The action of this control step, float32 (A,); time moves on by one step for this world."""
        ...

    def describe(self) -> str:
        """The setting in words, for the record that goes with every score."""
        ...


class RecedingHorizon:
    """Execute the first `execute` actions of each chunk (all of it where it is shorter), then ask again."""

    def __init__(self, execute: int = 5):
        self.execute = _positive("execute", execute)
        self._planned: dict[int, deque[np.ndarray]] = {}

    def begin(self, world: int) -> None:
        self._planned[world] = deque()

    def asks(self, world: int) -> bool:
        return not self._planned[world]

    def give(self, world: int, chunk: np.ndarray) -> None:
        self._planned[world] = deque(chunk[: self.execute])

    def action(self, world: int) -> np.ndarray:
        return self._planned[world].popleft()

    def describe(self) -> str:
        return f"receding horizon, {self.execute} actions per query"


class TemporalEnsemble:
    """Average what every chunk so far says about this step, with weights exp(-decay * age rank), the oldest first.

    The rule of Zhao et al. 2023 (ACT): weight 1 for the oldest chunk that still reaches this step, exp(-decay) for the
    next, and so on; `decay` 0.01 is theirs, 0 is the plain mean. The policy is asked at every `execute`-th step (1 there).
    """

    def __init__(self, execute: int = 1, decay: float = 0.01):
        self.execute = _positive("execute", execute)
        if not 0.0 <= decay < float("inf"):
            raise UserError(f"decay is {decay}: give a number of at least 0 for the temporal ensemble.")
        self.decay = decay
        self._step: dict[int, int] = {}
        self._chunks: dict[int, deque[tuple[int, np.ndarray]]] = {}

    def begin(self, world: int) -> None:
        self._step[world] = 0
        self._chunks[world] = deque()

    def asks(self, world: int) -> bool:
        chunks = self._chunks[world]
        if not chunks:
            return True
        since, chunk = chunks[-1]
        return self._step[world] - since >= min(self.execute, len(chunk))

    def give(self, world: int, chunk: np.ndarray) -> None:
        self._chunks[world].append((self._step[world], chunk))

    def action(self, world: int) -> np.ndarray:
        step, chunks = self._step[world], self._chunks[world]
        while step - chunks[0][0] >= len(chunks[0][1]):
            chunks.popleft()
        said = np.stack([chunk[step - since] for since, chunk in chunks if step - since < len(chunk)])
        weights = np.exp(-self.decay * np.arange(len(said)))
        self._step[world] = step + 1
        return np.average(said, axis=0, weights=weights).astype(np.float32)

    def describe(self) -> str:
        return f"temporal ensemble, decay {self.decay:g}, asked every {self.execute} steps"


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name} is {value}: give at least 1 action to execute per query.")
    return int(value)
