"""A policy for a SO-101 without cameras: the first joint goes to one side, the gripper closes."""

import numpy as np
from hydra import compose, initialize_config_module

from vla.spec import STATE, Entry, Spec


class Aside:
    history = False

    def __init__(self):
        with initialize_config_module("conf", version_base="1.3"):
            world = compose("control", ["robot=so101"]).robot.world
        state = tuple(Entry(f.name, f.unit) for f in world.state)
        action = tuple(Entry(f.name, f.unit, f.low, f.high) for f in world.action)
        self.spec = Spec(state=state, action=action, action_kind="joints", control_hz=30.0, frame=world.frame)

    def begin(self, seeds):
        return {"seed": np.array(seeds)}

    def act(self, observation, memory):
        chunk = np.repeat(np.asarray(observation[STATE], np.float32)[:, None], 10, axis=1)
        chunk[:, :, 0], chunk[:, :, 5] = 0.5, 0.1
        return chunk, memory
