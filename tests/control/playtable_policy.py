"""A light policy for the simulated robot: the hand goes up and down."""

from dataclasses import replace

import numpy as np

from envs.playtable import make


class UpAndDown:
    history = False

    def __init__(self):
        world = make(cameras={"static": (8, 8)})
        self.spec = replace(world.vla_spec, environment_state=())  # a robot does not know it
        world.close()

    def begin(self, seeds):
        return {"asked": np.zeros(len(seeds), int)}

    def act(self, observation, memory):
        chunk = np.zeros((1, 10, 7), np.float32)
        chunk[:, :, 2] = 0.3 if memory["asked"][0] % 2 else -0.3
        chunk[:, :, 6] = 1.0
        return chunk, {"asked": memory["asked"] + 1}
