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
from vla.spec import UserError

PRESSED = 2e-5
"""How deep a start presses blocks into what they lie on, metres: as deep as they rest, so that contact is there at once."""


class Play:
    """Random play: starts of all kinds, then valid tasks one after another, those done least so far first.

    max_steps: control steps that a task may take. eagerness: how strongly tasks done less often are preferred (0: not at all).
    share: of some tasks, how many times as often as the others they are to be done (1 where nothing is said).
    """

    def __init__(self, max_steps: int = 240, eagerness: float = 2.0, share: Mapping[str, float] | None = None) -> None:
        self.max_steps, self.eagerness, self.share = max_steps, eagerness, dict(share or {})
        for task, times in self.share.items():
            if task not in TASKS or not times > 0:
                raise UserError(f"play.share has {task}: {times}: name a task of CALVIN's and a number above 0.")

    def _done(self, task: str, counts: Mapping[str, int]) -> float:
        return counts.get(task, 0) / self.share.get(task, 1.0)

    def start(self, rng: np.random.Generator, scene: str, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Reset options of one world: a random hand and a random table that suits one of the tasks done least."""
        least = min(self._done(task, counts) for task in TASKS)
        wanted = str(rng.choice([task for task in TASKS if self._done(task, counts) == least]))
        layout = L.layout_of(scene)
        return {"robot_obs": random_hand(rng), "scene_obs": _laid_down(random_scene(rng, layout, wanted), layout)}

    def choose(self, rng: np.random.Generator, state: State, scene: str, counts: Mapping[str, int]) -> str | None:
        """A task that can be attempted now, or None; `counts` says how often each was done before."""
        valid = valid_tasks(state, L.layout_of(scene))
        if not valid:
            return None
        weights = np.array([(1.0 + self._done(task, counts)) ** -self.eagerness for task in valid])
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
