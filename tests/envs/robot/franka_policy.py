"""A small policy for the Franka: the hand rises, closes and sinks again; then it asks for the end of the run."""

from pathlib import Path

import numpy as np

from envs.playtable.world import ACTION_ENTRIES, FRAME, STATE_ENTRIES
from vla.spec import STATE, Spec

HIGH, LOW = 0.004, 0.002
"""Metres above its first place between which the hand turns."""


class UpAndDown:
    history = False
    spec = Spec(
        cameras={"static": (24, 32)}, state=STATE_ENTRIES, action=ACTION_ENTRIES, action_kind="relative_pose",
        control_hz=10.0, frame=FRAME,
    )  # fmt: skip

    def __init__(self, stop: str):
        self.stop = Path(stop)

    def begin(self, seeds):
        return {"first": np.full(1, np.nan), "way": np.ones(1)}

    def act(self, observation, memory):
        height = observation[STATE][:, 2]
        first = np.where(np.isnan(memory["first"]), height, memory["first"])
        way = np.where(height > first + HIGH, -1.0, memory["way"])
        if way[0] < 0 and height[0] < first[0] + LOW:
            self.stop.touch()
        chunk = np.zeros((1, 10, 7), np.float32)
        chunk[0, :, 2], chunk[0, :, 6] = 0.5 * way[0], way[0]
        return chunk, {"first": first, "way": way}
