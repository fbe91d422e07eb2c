"""Success without a person: the simulated table knows its true state, and the benchmark's rules judge it."""

from __future__ import annotations

from typing import Any

from envs.playtable.language import task_of
from envs.playtable.tasks import TASKS
from vla.spec import UserError


class Success:
    """A `vla.control.session.Check` for the simulated robot of `world`, a RobotWorld."""

    def __init__(self, world: Any) -> None:
        self.robot = world.robot

    def begin(self, sentence: str) -> str:
        """The task that a sentence of the playtable's asks for; "" for anybody's own words, which are not judged."""
        try:
            task = task_of(sentence)
        except UserError:
            task = ""
        self.robot.judge(TASKS.index(task) if task else -1)
        return task

    def solved(self) -> bool:
        return self.robot.solved
