# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Adapter: the genuine CALVIN simulator (mees/calvin_env on PyBullet), from a checkout of the user's.

root        folder with a git checkout for each revision, named like it (`make calvin` makes it)
revision    1431a46, which mees/calvin pins and published numbers were made with, or 797142c, the last that changes code
scene       A, B, C or D
egl         pictures by OpenGL, as in CALVIN's dataset, instead of the software renderer
mends       traps that are mended, each true or false:
    actions    1431a46 scales the caller's action in place; mended, it keeps its values
    history    a reset keeps solver and contact caches, the button's memory and the last gripper command; mended, each reset
               begins in a new simulator, as if the process had just been started, with the start's gripper command
    led        after a reset the button's own state may differ from the LED's, so that a press does nothing; mended, it is the
               LED's

That several worlds in one process get in each other's way needs no switch: each has a process of its own. Start: robot_obs and
scene_obs, where missing the home pose and CALVIN's random blocks; `seed` is what these are drawn from. Nothing ends by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

REVISIONS = ("1431a46", "797142c")
MENDS = ("actions", "history", "led")
CAMERAS = {"static": "static", "wrist": "gripper"}
CONTACT = 5
"""Entries of a PyBullet contact that say who touches whom."""
POSE = (("x", "m"), ("y", "m"), ("z", "m"), ("roll", "rad"), ("pitch", "rad"), ("yaw", "rad"))


class World:
    action_kind = "relative_pose"
    control_hz = 30
    frame = (
        "world frame, z up; pose deltas in units of 0.02 m and 0.05 rad, added to extrinsic xyz Euler angles; "
        "tool centre point 0.14 m along the hand; gripper +1 open, -1 closed"
    )
    state = (
        *(("tcp_" + name, unit) for name, unit in POSE),
        ("gripper_width", "m"),
        *((f"joint_{i + 1}", "rad") for i in range(7)),
        ("gripper_action", "1"),
    )
    action = (*(("delta_" + name, "1", -1, 1) for name, _ in POSE), ("gripper", "1", -1, 1))
    environment_state = (
        *((name, "m") for name in ("slider", "drawer", "button", "switch")),
        *((name, "1") for name in ("lightbulb", "led")),
        *((f"block{i}_{name}", unit) for i in range(3) for name, unit in POSE),
    )
    success = False

    def __init__(self, cameras, root, revision, scene, egl=False, mends=None):
        self.mends = dict.fromkeys(MENDS, True)
        self.mends.update(mends or {})
        if set(self.mends) != set(MENDS):
            raise ValueError("there is no mend {!r}, only {}".format(max(set(self.mends) - set(MENDS)), ", ".join(MENDS)))
        for camera in cameras:
            if camera not in CAMERAS:
                raise ValueError(f"there is no camera {camera!r}, only {sorted(CAMERAS)}")
        if scene not in ("A", "B", "C", "D"):
            raise ValueError(f"there is no scene {scene!r}, only A, B, C and D")
        checkout = os.path.join(root, revision)
        require_published(checkout, revision)
        sys.path.insert(0, checkout)
        self.config = composed(checkout, cameras, scene, egl)
        self.make()
        self.projections = {name: self.projection(name) for name in cameras if name == "static"}
        self.hand_projections = {name: self.projection(name) for name in cameras if name == "wrist"}

    def make(self):
        """A simulator without any past."""
        import hydra

        self.close()
        self.env = hydra.utils.instantiate(self.config.env)
        # Its steps take pictures with all cameras that it has, whoever wants them.
        self.cameras = {camera.name: camera for camera in self.env.cameras}
        self.env.cameras = []
        self.used = False

    def reset(self, seed, task, robot_obs=None, scene_obs=None):
        if self.used and self.mends["history"]:
            self.make()
        self.used = True
        random = np.random.default_rng(seed)
        for part in (self.env.scene, *self.env.scene.movable_objects):
            part.np_random = random
        robot, scene = (None if start is None else np.array(start, float) for start in (robot_obs, scene_obs))
        self.observation = self.env.reset(robot_obs=robot, scene_obs=scene)
        if self.mends["history"]:
            self.env.robot.gripper_action = 1 if robot is None or robot[14] > 0 else -1
            self.observation = self.env.get_obs()
        if self.mends["led"]:
            for button in self.env.scene.buttons:
                button.state = type(button.state)(button.light.get_state())
        self.info, self.after = self.env.get_info(), None

    def step(self, action):
        action[6] = 1.0 if action[6] > 0 else -1.0
        given = action.copy() if self.mends["actions"] else action
        self.observation, reward, _, self.info = self.env.step(given)
        self.after = action
        return reward, False, False

    def observe(self):
        return {
            "observation.state": self.observation["robot_obs"],
            "observation.environment_state": self.observation["scene_obs"],
        }

    def told(self):
        """What CALVIN's oracle reads of its info, in the same places; and the action, if CALVIN changes its caller's."""
        robot, scene = self.info["robot_info"], self.info["scene_info"]
        table = scene["fixed_objects"]["table"]
        info = {
            "robot_info": {"uid": robot["uid"], "contacts": touching(robot["contacts"])},
            "scene_info": {
                "fixed_objects": {"table": {"uid": table["uid"], "links": table["links"]}},
                "movable_objects": {
                    name: {**block, "contacts": touching(block["contacts"])} for name, block in scene["movable_objects"].items()
                },
                **{kind: scene[kind] for kind in ("doors", "buttons", "switches", "lights")},
            },
        }
        return {"info": info, "action": None if self.after is None or self.mends["actions"] else self.after.tolist()}

    def draw(self, camera):
        return self.cameras[CAMERAS[camera]].render()[0]

    def projection(self, name):
        """3x4, row by row: a point of the world, or of the tool's frame for the wrist's camera, to shares of the picture."""
        self.draw(name)
        camera = self.cameras[CAMERAS[name]]
        # The two kinds of cameras spell their matrices differently.
        names = ("viewMatrix", "projectionMatrix") if name == "static" else ("view_matrix", "projection_matrix")
        view, lens = (np.reshape(getattr(camera, each), (4, 4)).T for each in names)
        matrix = lens @ view
        if name == "wrist":
            import pybullet

            robot = self.env.robot
            position, turn = pybullet.getLinkState(robot.robot_uid, robot.tcp_link_id, physicsClientId=self.env.cid)[:2]
            tool = np.eye(4)
            tool[:3, :3], tool[:3, 3] = np.reshape(pybullet.getMatrixFromQuaternion(turn), (3, 3)), position
            matrix = matrix @ tool
        right, up, ahead = matrix[0], matrix[1], matrix[3]
        return np.stack([(ahead + right) / 2, (ahead - up) / 2, ahead]).ravel()

    def close(self):
        """Once only: whoever closes it again, as its destructor does, may disconnect another simulator of the same number."""
        env = getattr(self, "env", None)
        if env is not None and env.ownsPhysicsClient:
            env.close()
            env.ownsPhysicsClient = False


def touching(contacts):
    """The beginnings of PyBullet's contacts, each pair of links once."""
    return sorted({contact[:CONTACT] for contact in contacts})


def require_published(checkout, revision):
    """ValueError unless the folder is a git checkout of a published revision, with no file changed."""
    if revision not in REVISIONS:
        raise ValueError(f"there is no revision {revision!r}, only {' and '.join(REVISIONS)}")

    def git(*words):
        # Whoever owns the folder: nothing of it is run by these two commands.
        command = ["git", "-c", "safe.directory=*", "-C", checkout, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    head = git("rev-parse", "--show-toplevel", "HEAD")
    found = head.stdout.split("\n")
    if head.returncode or os.path.realpath(found[0]) != os.path.realpath(checkout) or not found[1].startswith(revision):
        raise ValueError(f"{checkout} is no git checkout of CALVIN's {revision}")
    if changed := git("status", "--porcelain", "--untracked-files=no").stdout.splitlines():
        raise ValueError(f"{checkout} is not what was published: {len(changed)} files differ, the first {changed[0][3:]}")


def composed(checkout, cameras, scene, egl):
    """The configuration of an environment, as CALVIN's own scripts compose it."""
    import hydra

    changes = [f"scene=calvin_scene_{scene}", "use_vr=false", f"env.use_egl={bool(egl)}", "env.use_scene_info=true"]
    changes += [f"hydra/{log}=default" for log in ("job_logging", "hydra_logging")]
    changes += ["cameras=static_and_gripper" if cameras else "cameras=no_cameras"]
    with hydra.initialize_config_dir(os.path.join(os.path.abspath(checkout), "conf"), version_base=None):
        config = hydra.compose("config_data_collection", overrides=changes)
    if cameras:
        for name in set(CAMERAS) - set(cameras):
            del config.cameras[CAMERAS[name]]
        for name, (height, width) in cameras.items():
            config.cameras[CAMERAS[name]].update(height=height, width=width, aspect=width / height)
    return config
