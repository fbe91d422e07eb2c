"""A recorded episode's actions as a policy, so that a replay is a rollout like any other, with the same safety."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla.data.store import Dataset
from vla.policy import Memory, Observation
from vla.spec import ACTION, UserError


class Replayed:
    """Episode `episode` of the dataset at `path`, one action a control step, whatever is observed.

    It asks for no cameras and no state, only for a robot with the same actions. After the last action it repeats nothing:
    chunks get empty, so follow it for `len(self)` steps. instruction: the episode's first one.
    """

    history = False

    def __init__(self, path: str, episode: int) -> None:
        dataset = Dataset(path)
        if not 0 <= episode < dataset.num_episodes:
            raise UserError(f"episode {episode} is not in {path}: it has {dataset.num_episodes}, counted from 0.")
        start, end = int(dataset.episode_starts[episode]), int(dataset.episode_ends[episode])
        self.actions = dataset.vectors[ACTION][start:end]
        self.spec = replace(dataset.spec, cameras={}, state=(), environment_state=())
        texts = dataset.segments["instruction"][dataset.segments["episode"] == episode]
        self.instruction = dataset.instructions[int(texts[0])] if len(texts) else f"replay of episode {episode}"

    def __len__(self) -> int:
        return len(self.actions)

    def begin(self, seeds: Sequence[int]) -> Memory:
        return {"step": np.zeros(len(seeds), np.int64)}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        step = int(memory["step"][0])
        return self.actions[None, step:], {"step": memory["step"] + 1}

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory

    def close(self) -> None: ...
