"""Single tasks of a world that lives elsewhere, as a benchmark (chains of one) and as play (episodes of one)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from envs.elsewhere.world import State
from vla.spec import UserError

Sentences = Mapping[str, str] | Sequence[str]
"""Tasks and what asks for them; of mere names, the words that they are made of, without the scene in front (LIBERO)."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One task from one start; `start` are the reset options of a world."""

    tasks: tuple[str]
    start: Mapping[str, np.ndarray]


def sentence(task: str) -> str:
    """KITCHEN_SCENE3_turn_on_the_stove -> turn on the stove."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")


class Benchmark:
    """Every task from the starts 0 to `trials` - 1, each with at most `max_steps` control steps.

    name: of the world. tasks: see `Sentences`; the order is that of the world's reset option `task`.
    The trials go through all tasks before they come to the next start, so that the first so many are a fair sample.
    """

    def __init__(self, name: str, tasks: Sentences, max_steps: int, trials: int = 100) -> None:
        self.name, self.max_steps, self.trials = name, max_steps, trials
        self._sentences = dict(tasks) if isinstance(tasks, Mapping) else {task: sentence(task) for task in tasks}
        self.tasks = tuple(tasks)

    def chains(self) -> list[Trial]:
        """All trials."""
        return [
            Trial((task,), {"task": np.array(k), "start": np.array(start)})
            for start in range(self.trials)
            for k, task in enumerate(self.tasks)
        ]

    def solved(self, task: str, start: State, end: State) -> bool:
        """Whether the world says so."""
        return end.success

    def instructions(self, task: str, split: str = "validation") -> tuple[str, ...]:
        """The task's only sentence; UserError for an unknown task, and for held-out wording, which these worlds do not have."""
        if task not in self._sentences:
            raise UserError(f"{self.name} has no task {task!r}: use one of {', '.join(self.tasks)}.")
        if split not in ("train", "validation"):
            raise UserError(f"{self.name} has one wording and no split {split!r}: use split=validation.")
        return (self._sentences[task],)


class Play:
    """Episodes of one task each, those done least so far first, from starts that no benchmark's trial has."""

    FIRST_START = 10_000

    def __init__(self, name: str, tasks: Sentences, max_steps: int) -> None:
        self.max_steps, self._benchmark = max_steps, Benchmark(name, tasks, max_steps)

    def start(self, rng: np.random.Generator, scene: str, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Reset options of one world: a task out of those done least, at a random start."""
        tasks = self._benchmark.tasks
        least = min(counts.get(task, 0) for task in tasks)
        wanted = rng.choice([k for k, task in enumerate(tasks) if counts.get(task, 0) == least])
        return {"task": np.array(wanted), "start": np.array(rng.integers(self.FIRST_START, 2**31))}

    def choose(self, rng: np.random.Generator, state: State, scene: str, counts: Mapping[str, int]) -> str | None:
        """The world's task, until it is solved or the episode has ended."""
        return None if state.success or state.ended else state.task

    def solved(self, task: str, start: State, end: State) -> bool:
        """Whether the world says so."""
        return end.success

    def instructions(self, task: str) -> Sequence[str]:
        """The task's only sentence."""
        return self._benchmark.instructions(task, "train")
