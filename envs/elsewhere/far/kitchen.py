# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Adapter: FrankaKitchen of gymnasium-robotics, one of its seven tasks at a time. A start is the seed of its sensor noise.

Actions are joint speeds, in shares of 2 rad/s. Camera: static, the one that its own `render` uses.
"""

from __future__ import annotations

import numpy as np

CAMERA = {"distance": 2.2, "azimuth": 70.0, "elevation": -35.0, "lookat": (-0.2, 0.5, 2.0)}
JOINTS = (*((f"joint_{i + 1}", "rad") for i in range(7)), *((f"finger_{i + 1}", "m") for i in range(2)))


class World:
    action_kind = "joints"
    control_hz = 12.5
    frame = "joint speeds in units of 2 rad/s, finger speeds in units of 2 m/s"
    state = (*JOINTS, *((name + "_speed", unit + "/s") for name, unit in JOINTS))
    environment_state = (*((f"object_{i}", "1") for i in range(21)), *((f"object_{i}_speed", "1") for i in range(20)))
    action = tuple((name + "_speed", "1", -1, 1) for name, _ in JOINTS)

    def __init__(self, cameras, shadows=False):
        import gymnasium
        import gymnasium_robotics
        import mujoco

        gymnasium.register_envs(gymnasium_robotics)
        if set(cameras) - {"static"}:
            raise ValueError(f"there is no camera {max(set(cameras) - {'static'})!r}, only 'static'")
        self.env = gymnasium.make("FrankaKitchen-v1", terminate_on_tasks_completed=False)
        self.known = set(self.env.unwrapped.goal)
        self.model, self.data = self.env.unwrapped.model, self.env.unwrapped.data
        self.camera = mujoco.MjvCamera()
        for name, value in CAMERA.items():
            setattr(self.camera, name, value)
        if not shadows:
            self.model.vis.quality.shadowsize = self.model.vis.quality.offsamples = 0
        self.renderers = {name: mujoco.Renderer(self.model, *size) for name, size in cameras.items()}

    def reset(self, seed, task):
        if task not in self.known:
            raise ValueError(f"there is no task {task!r}, only {', '.join(sorted(self.known))}")
        self.task, self.success = task, False
        self.observation, _ = self.env.reset(seed=seed)

    def step(self, action):
        self.observation, _, _, truncated, info = self.env.step(np.clip(action, -1, 1))
        self.success = self.task in info["episode_task_completions"]
        return float(self.success), self.success, truncated

    def observe(self):
        numbers = self.observation["observation"]
        return {"observation.state": numbers[:18], "observation.environment_state": numbers[18:]}

    def draw(self, camera):
        self.renderers[camera].update_scene(self.data, self.camera)
        return self.renderers[camera].render()

    def close(self):
        for renderer in self.renderers.values():
            renderer.close()
        self.env.close()
