# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Adapter: LIBERO's tasks with CALVIN's shape of state and action, so that policies made for the one fit the other.

suite: libero_spatial, libero_object, libero_goal, libero_10, libero_90 or another of the package's. A start is the number of
one of the task's fixed states (counted on from the first after the last), in which all is left to settle for `settle` steps.
`gripper` is +1 open and -1 closed, the other way round than LIBERO's own. Cameras: static (agentview) and wrist
(robot0_eye_in_hand), upright.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CAMERAS = {"static": "agentview", "wrist": "robot0_eye_in_hand"}
POSE = (("x", "m"), ("y", "m"), ("z", "m"), ("roll", "rad"), ("pitch", "rad"), ("yaw", "rad"))


class World:
    action_kind = "relative_pose"
    control_hz = 20
    frame = (
        "world frame, z up; deltas in units of 0.05 m and 0.5 rad of an axis-angle; extrinsic xyz Euler angles of the hand; "
        "gripper +1 open, -1 closed"
    )
    state = (
        *(("tcp_" + name, unit) for name, unit in POSE),
        ("gripper_width", "m"),
        *((f"joint_{i + 1}", "rad") for i in range(7)),
        ("gripper_action", "1"),
    )
    environment_state = ()
    action = (*(("delta_" + name, "1", -1, 1) for name, _ in POSE), ("gripper", "1", -1, 1))

    def __init__(self, cameras, suite, shadows=False, settle=10):
        import mujoco
        from libero.libero.benchmark import get_benchmark_dict

        self.mujoco, self.sizes, self.shadows, self.settle = mujoco, cameras, shadows, settle
        for camera in cameras:
            if camera not in CAMERAS:
                raise ValueError(f"there is no camera {camera!r}, only {sorted(CAMERAS)}")
        if suite not in get_benchmark_dict():
            raise ValueError(f"there is no suite {suite!r}, only {', '.join(sorted(get_benchmark_dict()))}")
        self.suite = get_benchmark_dict()[suite]()
        self.numbers = {name: k for k, name in enumerate(self.suite.get_task_names())}
        self.renderers = {}
        self.task: Any = None
        self.env: Any = None

    def make(self, task):
        """One simulator at a time: each of them holds some hundred megabytes of meshes and textures."""
        from libero.libero.envs import env_wrapper

        self.close()
        file = self.suite.get_task_bddl_file_path(self.numbers[task])
        self.env = env_wrapper.ControlEnv(
            file, use_camera_obs=False, has_offscreen_renderer=False, hard_reset=False, ignore_done=True
        )
        self.starts = self.suite.get_task_init_states(self.numbers[task])
        self.task = task
        self.env.seed(0)
        self.env.reset()
        model = self.env.sim.model._model
        if not self.shadows:
            model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        self.looks = self.mujoco.MjvOption()
        self.looks.geomgroup[0] = 0  # what only collides
        self.renderers = {size: self.mujoco.Renderer(model, *size) for size in {tuple(size) for size in self.sizes.values()}}

    def reset(self, seed, task):
        if task not in self.numbers:
            raise ValueError(f"there is no task {task!r}, only {', '.join(self.numbers)}")
        if task != self.task:
            self.make(task)
        self.env.seed(0)
        self.env.reset()
        for robot in self.env.robots:  # the fingers' command adds up, and survives a reset
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self.env.set_init_state(self.starts[seed % len(self.starts)])
        self.success = False
        for _ in range(self.settle):
            self.step(np.array([0, 0, 0, 0, 0, 0, 1]))

    def step(self, action):
        action = np.clip(action, -1, 1)
        self.gripper = 1.0 if action[6] > 0 else -1.0
        _, reward, _, _ = self.env.step(np.append(action[:6], -action[6]))
        # What a step returns may be a physics step older, depending on how many steps there were before.
        self.seen = self.env.env._get_observations(force_update=True)
        self.success = bool(self.env.check_success())
        return reward, self.success, False

    def observe(self):
        x, y, z, w = self.seen["robot0_eef_quat"]
        roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
        pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        left, right = self.seen["robot0_gripper_qpos"]
        pose = [*self.seen["robot0_eef_pos"], roll, pitch, yaw]
        joints = np.arctan2(self.seen["robot0_joint_pos_sin"], self.seen["robot0_joint_pos_cos"])
        return {"observation.state": np.array([*pose, left - right, *joints, self.gripper])}

    def draw(self, camera):
        renderer = self.renderers[tuple(self.sizes[camera])]
        renderer.update_scene(self.env.sim.data._data, CAMERAS[camera], self.looks)
        return renderer.render()

    def close(self):
        for renderer in self.renderers.values():
            renderer.close()
        self.renderers = {}
        if self.env is not None:
            self.env.close()
