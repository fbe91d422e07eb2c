"""Learning from one's own mistakes (DAgger, Ross et al. 2011): a learner begins, an expert takes over and shows the way out.

The expert's own play never visits where a learner ends up. Here the learner answers the first few queries of every task,
how many is drawn from the task's seed, and the expert all that follow. Only what the expert does is worth learning:
`handover` says from which step on that is. Handing over once, and not mixing step by step, keeps chunks of actions true: what
follows a labelled observation is what was done after it (Kelly et al. 2019, HG-DAgger).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla.policy import Memory, Observation, Policy
from vla.rollout import merge, select
from vla.spec import UserError


class Handover:
    """A policy that is the learner for a while and the expert afterwards.

    steps: least and most control steps that the learner has, in multiples of `execute`, the actions of a chunk that are
    executed before it is asked again.
    """

    def __init__(self, learner: Policy, expert: Policy, steps: Sequence[int], execute: int) -> None:
        low, high = steps
        if not 0 <= low <= high:
            raise UserError(f"learner_steps is {list(steps)}: give the least and the most steps, 0 <= least <= most.")
        self.learner, self.expert = learner, expert
        self.history = learner.history
        self.spec = replace(learner.spec, environment_state=expert.spec.environment_state)
        self._queries, self._execute = (low // execute, high // execute), execute

    def queries(self, seed: int) -> int:
        """How many queries the learner answers of a task whose policy draws from this seed."""
        return int(np.random.default_rng((seed, 1)).integers(self._queries[0], self._queries[1] + 1))

    def handover(self, seed: int) -> int:
        """The step of such a task from which on the expert acts."""
        return self.queries(seed) * self._execute

    def begin(self, seeds: Sequence[int]) -> Memory:
        return {"learner": self.learner.begin(seeds), "left": np.array([self.queries(seed) for seed in seeds])}

    def act(self, observation: Observation, memory: Memory) -> tuple[Any, Memory]:
        """A chunk for each world: (execute, A) of the learner, (1, A) of the expert."""
        left = memory["left"]
        chunks: list[Any] = [None] * len(left)
        memories = [select(memory["learner"], [i]) for i in range(len(left))]
        for policy, rows in ((self.learner, np.flatnonzero(left > 0)), (self.expert, np.flatnonzero(left == 0))):
            if not len(rows):
                continue
            seen = {
                name: [value[i] for i in rows] if isinstance(value, list) else value[rows]
                for name, value in observation.items()
            }
            mine = policy is self.learner
            answers, after = policy.act(seen, merge([memories[i] for i in rows]) if mine else None)
            if mine and answers.shape[1] < self._execute:
                raise UserError(
                    f"execute is {self._execute} but the learner's chunks have {answers.shape[1]} actions: execute no more."
                )
            for row, i in enumerate(rows):
                chunks[i] = answers[row, : self._execute]
                if mine:
                    memories[i] = select(after, [row])
        return chunks, {"learner": merge(memories), "left": np.maximum(left - 1, 0)}

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory | {"learner": self.learner.remember(observation, memory["learner"])}
