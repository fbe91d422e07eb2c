"""The scripted expert of a world that lives elsewhere: its simulator computes the action, here it is handed on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.elsewhere.far.server import EXPERT
from vla.policy import Memory, Observation
from vla.spec import Spec, UserError


class Expert:
    """Chunks of the one action that the simulator's expert gives at this instant; meets `vla.policy.Policy`."""

    spec = Spec()
    history = False

    def begin(self, seeds: Sequence[int]) -> Memory:
        return None

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Raises UserError where the simulator has no expert."""
        if EXPERT not in observation:
            raise UserError("this world has no scripted expert: give checkpoint=<folder>, or another env.")
        return np.asarray(observation[EXPERT], np.float32)[:, None], memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory
