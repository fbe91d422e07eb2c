"""Adapter: any gymnasium environment with continuous actions, described by options alone.

id           name in gymnasium's registry
plugins      modules that register it
arguments    of gymnasium.make
state        path of the state in the observation (["agent_pos"]); empty where the observation is an array
environment_state    path of the privileged state, where there is one
pictures     camera -> path of its picture in the observation, or "render"; pictures are shrunk to whole fractions only
success      key of the info that says whether the task is solved; where there is none, the end of the episode does
plain        attributes that lead from the environment to its MuJoCo model, where shadows and antialiasing are to be left out
action_kind, control_hz, frame, units (of state, environment_state and action)
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import functools
import importlib

import numpy as np


class World:
    def __init__(
        self, cameras, id, control_hz, plugins=(), arguments=None, state=(), environment_state=None, pictures=None,
        success=None, plain=(), action_kind="joints", frame="", units=None,
    ):  # fmt: skip
        for plugin in plugins:
            importlib.import_module(plugin)
        import gymnasium

        self.env = gymnasium.make(id, **(arguments or {}))
        if plain:
            quality = functools.reduce(getattr, plain, self.env).vis.quality
            quality.shadowsize = quality.offsamples = 0
        self.paths = {"observation.state": state}
        if environment_state is not None:
            self.paths["observation.environment_state"] = environment_state
        self.pictures, self.sizes, self.success_key = pictures or {}, cameras, success
        for camera in cameras:
            if camera not in self.pictures:
                raise ValueError(f"there is no camera {camera!r}, only {sorted(self.pictures)}")
        self.action_kind, self.control_hz, self.frame = action_kind, control_hz, frame
        self.success = False
        units = units or {}
        self.observation, _ = self.env.reset(seed=0)
        numbers = self.observe()
        self.state = [(f"state_{i}", units.get("state", "1")) for i in range(len(numbers["observation.state"]))]
        self.environment_state = [
            (f"scene_{i}", units.get("environment_state", "1"))
            for i in range(len(numbers.get("observation.environment_state", ())))
        ]
        self.low, self.high = self.env.action_space.low.ravel(), self.env.action_space.high.ravel()
        if not np.isfinite(np.concatenate([self.low, self.high])).all():
            raise ValueError("its actions have no bounds")
        unit = units.get("action", "1")
        self.action = [(f"action_{i}", unit, self.low[i], self.high[i]) for i in range(len(self.low))]

    def reset(self, seed, task):
        self.observation, _ = self.env.reset(seed=seed)
        self.success = False

    def step(self, action):
        action = np.clip(action, self.low, self.high).astype(self.env.action_space.dtype)
        self.observation, reward, terminated, truncated, info = self.env.step(action.reshape(self.env.action_space.shape))
        self.success = bool(info[self.success_key]) if self.success_key else bool(terminated)
        return reward, terminated, truncated

    def observe(self):
        return {name: np.ravel(self.at(path)) for name, path in self.paths.items()}

    def draw(self, camera):
        path = self.pictures[camera]
        picture = np.asarray(self.env.render() if path == "render" else self.at(path))
        height, width = self.sizes[camera]
        down, across = picture.shape[0] // height, picture.shape[1] // width
        if (down * height, across * width) != picture.shape[:2]:
            raise ValueError("the picture is {} x {}, which {} x {} does not divide".format(*picture.shape[:2], height, width))
        return np.rint(picture.reshape(height, down, width, across, 3).mean((1, 3))).astype(np.uint8)

    def at(self, path):
        value = self.observation
        for key in path:
            value = value[key]
        return value

    def close(self):
        self.env.close()
