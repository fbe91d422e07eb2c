"""What play on the playtable looks like: where it starts, and which task comes next."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.playtable import layout as L
from envs.playtable.conditions import valid_tasks
from envs.playtable.language import instructions
from envs.playtable.starts import random_hand, random_scene
from envs.playtable.state import State
from envs.playtable.tasks import TASKS, is_solved

PRESSED = 2e-5
"""How deep a start presses blocks into what they lie on, metres: as deep as they rest, so that contact is there at once."""


class Play:
    """Random play: starts of all kinds, then valid tasks one after another, those done least so far first.

    max_steps: control steps that a task may take. eagerness: how strongly tasks done less often are preferred (0: not at all).
    """

    def __init__(self, max_steps: int = 240, eagerness: float = 2.0) -> None:
        self.max_steps, self.eagerness = max_steps, eagerness

    def start(self, rng: np.random.Generator, scene: str, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Reset options of one world: a random hand and a random table that suits one of the tasks done least."""
        least = min(counts.get(task, 0) for task in TASKS)
        wanted = str(rng.choice([task for task in TASKS if counts.get(task, 0) == least]))
        layout = L.layout_of(scene)
        return {"robot_obs": random_hand(rng), "scene_obs": _laid_down(random_scene(rng, layout, wanted), layout)}

    def choose(self, rng: np.random.Generator, state: State, scene: str, counts: Mapping[str, int]) -> str | None:
        """A task that can be attempted now, or None; `counts` says how often each was done before."""
        valid = valid_tasks(state, L.layout_of(scene))
        if not valid:
            return None
        weights = np.array([(1.0 + counts.get(task, 0)) ** -self.eagerness for task in valid])
        return str(rng.choice(valid, p=weights / weights.sum()))

    def solved(self, task: str, start: State, end: State) -> bool:
        """Whether the task was done between its beginning and now."""
        return is_solved(task, start, end)

    def instructions(self, task: str) -> tuple[str, ...]:
        """Sentences that ask for the task, of the training split."""
        return instructions(task, "train")


def _laid_down(scene: np.ndarray, layout: L.Layout) -> np.ndarray:
    """scene_obs (24,) with every block pressed lightly onto its support, the table or another block."""
    blocks = scene[6:].reshape(3, 6)
    for block in blocks:
        below = [b[2] + 0.04 for b in blocks if 0.02 < block[2] - b[2] < 0.06 and np.hypot(*(block - b)[:2]) < 0.03]
        surfaces = [top + 0.02 for top in (L.TABLE_TOP, L.PLANK_TOP, L.DRAWER_FLOOR)]
        support = below[0] if below else min(surfaces, key=lambda z: abs(z - block[2]))
        block[2] = support - PRESSED
    return scene
