"""Adapter: Meta-World's Sawyer with CALVIN's shape of state and action, so that policies made for the one fit the other.

The hand does not turn: of the seven action entries the three rotations do nothing. `gripper` is an effort, +1 to open and -1
to close, the other way round than Meta-World's own fourth entry; its experts hold on with less than all of it. Cameras: static
(its corner2, moved closer and turned upright, as is usual) and wrist (its gripperPOV). A start is a seed of the task's places.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import numpy as np

CAMERAS = {"static": "corner2", "wrist": "gripperPOV"}
CLOSER = (0.75, 0.075, 0.7)
"""Where the camera corner2 is put, in metres."""
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Axes of the hand when it points straight down, as it does all the time but for what contacts do to it."""
POSE = (("x", "m"), ("y", "m"), ("z", "m"), ("roll", "rad"), ("pitch", "rad"), ("yaw", "rad"))


class World:
    action_kind = "relative_pose"
    control_hz = 80
    frame = (
        "world frame, z up; position deltas in units of 0.01 m, rotations are ignored; extrinsic xyz Euler angles by which "
        "the hand is turned away from straight down; gripper effort +1 open, -1 closed"
    )
    state = (
        *(("tcp_" + name, unit) for name, unit in POSE),
        ("gripper_width", "m"),
        *((f"joint_{i + 1}", "rad") for i in range(7)),
        ("gripper_action", "1"),
    )
    action = (*(("delta_" + name, "1", -1, 1) for name, _ in POSE), ("gripper", "1", -1, 1))
    environment_state = (*((f"object_{i}", "1") for i in range(14)), *(("goal_" + axis, "m") for axis in "xyz"))

    def __init__(self, cameras, shadows=False):
        import mujoco

        import metaworld

        self.metaworld, self.mujoco, self.sizes, self.shadows = metaworld, mujoco, cameras, shadows
        for camera in cameras:
            if camera not in CAMERAS:
                raise ValueError(f"there is no camera {camera!r}, only {sorted(CAMERAS)}")
        self.envs, self.renderers, self.experts = {}, {}, {}
        self.env = self.made("reach-v3")  # any task: the cameras stand at the same places
        self.projections = {name: self.projection(size) for name, size in cameras.items() if name == "static"}

    def made(self, task):
        if task not in self.envs:
            from metaworld.policies import ENV_POLICY_MAP

            known = self.metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
            if task not in ENV_POLICY_MAP:
                raise ValueError("there is no task {!r}, only {}".format(task, ", ".join(sorted(ENV_POLICY_MAP))))
            env = known[task + "-goal-observable"](seed=0)
            env._freeze_rand_vec, env.seeded_rand_vec = False, True
            env.model.camera(CAMERAS["static"]).pos[:] = CLOSER
            if not self.shadows:
                env.model.vis.quality.shadowsize = env.model.vis.quality.offsamples = 0
            self.envs[task], self.experts[task] = env, ENV_POLICY_MAP[task]()
        return self.envs[task]

    def reset(self, seed, task):
        self.env, self.task = self.made(task), task
        self.env.seed(seed)
        self.mujoco.mj_resetData(self.env.model, self.env.data)  # warm starts of the last episode would reach into this one
        self.numbers, _ = self.env.reset()
        self.gripper, self.success = 1.0, False

    def step(self, action):
        action = np.clip(action, -1, 1)
        self.gripper = 1.0 if action[6] > 0 else -1.0
        self.numbers, reward, terminated, truncated, info = self.env.step(np.append(action[:3], -action[6]))
        self.success = bool(info["success"])
        return reward, terminated, truncated

    def observe(self):
        data = self.env.data
        width = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)
        joints = [data.joint(f"right_j{i}").qpos[0] for i in range(7)]
        pose = [*data.body("hand").xpos, *euler(data.body("hand").xmat.reshape(3, 3) @ DOWN.T)]
        return {
            "observation.state": np.array([*pose, width, *joints, self.gripper]),
            "observation.environment_state": np.concatenate([self.numbers[4:18], self.numbers[-3:]]),
        }

    def expert(self):
        action = np.clip(self.experts[self.task].get_action(self.numbers), -1, 1)
        return np.array([*action[:3], 0, 0, 0, -action[3]])

    def draw(self, camera):
        size = tuple(self.sizes[camera])
        if (self.task, size) not in self.renderers:
            self.renderers[self.task, size] = self.mujoco.Renderer(self.env.model, *size)
        renderer = self.renderers[self.task, size]
        renderer.update_scene(self.env.data, camera=CAMERAS[camera])
        picture = renderer.render()
        return picture[::-1, ::-1] if camera == "static" else picture

    def projection(self, size):
        """3x4, row by row: a point of the world to shares of the static picture, to the right and down (turned upright)."""
        model, data, (height, width) = self.env.model, self.env.data, size
        self.mujoco.mj_forward(model, data)
        camera = data.camera(CAMERAS["static"])
        axes = camera.xmat.reshape(3, 3).T  # rows: right, up and back
        view = np.column_stack([axes, -axes @ camera.xpos])
        half = np.tan(np.deg2rad(model.camera(CAMERAS["static"]).fovy[0]) / 2)
        right, up, ahead = view[0] * height / (width * half), view[1] / half, -view[2]
        return np.stack([(ahead - right) / 2, (ahead + up) / 2, ahead]).ravel()

    def save(self):
        which = self.mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self.mujoco.mj_stateSize(self.env.model, which))
        self.mujoco.mj_getState(self.env.model, self.env.data, state, which)
        rest = [self.env.curr_path_length, self.gripper, self.success, *self.env._prev_obs, *self.numbers]
        return np.concatenate([state, rest]).tobytes()

    def restore(self, saved):
        which = self.mujoco.mjtState.mjSTATE_INTEGRATION
        numbers, size = np.frombuffer(saved), self.mujoco.mj_stateSize(self.env.model, which)
        self.mujoco.mj_setState(self.env.model, self.env.data, numbers[:size], which)
        self.mujoco.mj_forward(self.env.model, self.env.data)
        path, self.gripper, success = numbers[size : size + 3]
        self.env.curr_path_length, self.success = int(path), bool(success)
        self.env._prev_obs, self.numbers = numbers[size + 3 : size + 21].copy(), numbers[size + 21 :].copy()

    def close(self):
        for renderer in self.renderers.values():
            renderer.close()


def euler(matrix):
    """Extrinsic xyz angles of a rotation matrix, rad."""
    return (
        np.arctan2(matrix[2, 1], matrix[2, 2]),
        np.arcsin(np.clip(-matrix[2, 0], -1, 1)),
        np.arctan2(matrix[1, 0], matrix[0, 0]),
    )
