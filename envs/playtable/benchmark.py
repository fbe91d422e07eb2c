"""What an evaluation needs to know of the playtable: chains of tasks, when a task is done, and how it is asked for."""

from __future__ import annotations

from envs.playtable.chains import COUNT, Chain, Condition, effects, evaluation_chains
from envs.playtable.language import instructions
from envs.playtable.state import State
from envs.playtable.tasks import TASKS, is_solved
from vla.spec import UserError


class Benchmark:
    """CALVIN's LH-MTLC protocol: chains of five tasks in scene D, each with at most `max_steps` control steps."""

    name = "playtable"
    tasks = TASKS
    max_steps = 360

    def chains(self, count: int = COUNT) -> list[Chain]:
        """The first `count` (1 to 1000) evaluation chains with their start states; raises UserError for another count."""
        return evaluation_chains(count)

    def solved(self, task: str, start: State, end: State) -> bool:
        """Whether the task was done between the state at its beginning and now; raises UserError for an unknown task."""
        return is_solved(task, start, end)

    def alternatives(self, chain: Chain) -> list[str]:
        """The tasks, but for the chain's first, that the symbolic model of the table allows in the chain's start."""
        start = Condition(**chain.initial)
        return [task for task in TASKS if task != chain.tasks[0] and effects(task, start)]

    def instructions(self, task: str, split: str = "validation") -> tuple[str, ...]:
        """All sentences of a split that ask for the task; raises UserError for an unknown task or split."""
        return instructions(task, split)

    def instruction(self, task: str, split: str = "validation", index: int = 0) -> str:
        """One sentence that asks for the task, counted from 0; raises UserError for an unknown task, split or index."""
        sentences = instructions(task, split)
        if not 0 <= index < len(sentences):
            raise UserError(f"instruction {index} of {task} in split {split!r}: there are {len(sentences)}, counted from 0.")
        return sentences[index]
