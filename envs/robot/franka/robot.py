"""The Franka as LeRobot's `Robot`."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.robots.robot import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from envs.playtable import dynamics
from envs.playtable.dynamics import ARM, FINGERS, POSITION_STEP, ROTATION_STEP
from envs.playtable.kinematics import forward, matrix_to_euler
from envs.playtable.world import ACTION_ENTRIES, STATE_ENTRIES
from envs.robot.franka.config import FrankaConfig
from envs.robot.franka.hand import CLOSED, OPEN, Hand
from envs.robot.franka.link import Attempt, Link
from vla.spec import UserError

STATE_FEATURES = tuple(f"{entry.name}.pos" for entry in STATE_ENTRIES)
STEP_FEATURES = tuple(f"{entry.name}.vel" for entry in ACTION_ENTRIES)
"""Steps of the hand end in .vel: LeRobot's rollout sends back to a start pose whatever it knows as .pos."""
JOINT_FEATURES = (*(f"joint_{k + 1}.pos" for k in range(7)), "gripper_action.pos")
UNITS = np.repeat([POSITION_STEP, ROTATION_STEP], 3)
OLDEST_MS = 10**9
"""However old a picture is, it is handed over: the stamp says so, and who drives the arm decides."""

log = logging.getLogger(__name__)


class Franka(Robot):
    """Observations as the playtable's robot has them, in SI units: the pose of the tool centre point, 0.14 m along the hand and
    computed from the joints, `gripper_width.pos`, `joint_1.pos`, ..., `gripper_action.pos` (last command, +1 open, -1 closed).

    Actions are steps `delta_x.vel`, ..., `gripper.vel` with CALVIN's meaning, or targets `joint_1.pos`, ...,
    `gripper_action.pos`; both become joint targets within `config.limits`. `send_action` gives what came of it.
    Every call raises DeviceNotConnectedError once the connection is lost. In a reflex nothing is sent.
    """

    config_class = FrankaConfig
    name = "franka"

    def __init__(self, config: FrankaConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = make_cameras_from_configs(config.cameras)
        self._link: Link | None = None
        self._hand: Hand | None = None
        self._attempt: Attempt | None = None
        self._faults: dict[str, dict[str, Any]] = {}
        self._features = STEP_FEATURES if config.action == "relative_pose" else JOINT_FEATURES
        self._steps = Steps(config)
        self._low, self._high = np.array(config.limits.low), np.array(config.limits.high)

    @property
    def observation_features(self) -> dict[str, Any]:
        pictures = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**dict.fromkeys(STATE_FEATURES, float), **pictures}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self._features, float)

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._link.lost is None and self._hand is not None and self._hand.lost is None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """The arm calibrates itself."""

    def configure(self) -> None:
        """Everything is set when the connection is made."""

    def connect(self, calibrate: bool = True) -> None:
        """Reach cameras, arm and hand; nothing moves. DeviceNotConnectedError if one does not answer."""
        if importlib.util.find_spec("franky") is None:
            raise UserError(
                "robot franka needs the package franky-control: install the extra, pip install 'hydra-vla[franka]'."
            )
        if self.is_connected:
            raise DeviceAlreadyConnectedError()
        if self._link is not None:  # lost, or its hand is
            self._link.close()
        self._link = self._hand = None
        for camera in self.cameras.values():
            if not camera.is_connected:
                camera.connect()
        attempt = self._attempt or Attempt(self.config)
        try:
            self._link = link = attempt.link()
        finally:
            self._attempt = attempt if self._link is None and attempt.is_alive() else None
        try:
            self._hand = Hand(self.config)
        except Exception as error:
            link.close()
            self._link = None
            raise DeviceNotConnectedError(f"The hand of the arm at {self.config.hostname} does not answer: {error}") from error
        self._faults = {}
        joints = link.read().joints
        self._steps.begin(joints)
        self._steps.step(joints, np.zeros(7))  # compiles, so that the first step in motion is as quick as the others
        self._steps.begin(joints)

    def get_observation(self) -> dict[str, Any]:
        link, hand = self._reach()
        now = link.read()
        self._note({**now.faults, **({"gripper_failed": {"said": hand.failure}} if hand.failure else {})})
        position, rotation, _ = forward(now.joints, self._steps.base)
        pose = [*position, *matrix_to_euler(rotation)]
        state = dict(zip(STATE_FEATURES, map(float, [*pose, hand.width, *now.joints, hand.command]), strict=True))
        pictures = {name: camera.read_latest(max_age_ms=OLDEST_MS) for name, camera in self.cameras.items()}
        self._times = {name: round(1e9 * camera.latest_timestamp) for name, camera in self.cameras.items()}  # type: ignore[attr-defined]
        self._times[""] = now.time_ns
        return {**state, **pictures}

    def stamps(self) -> dict[str, int]:
        """When the last observation was taken, monotonic ns: camera -> time, and "" for the joints."""
        return dict(self._times)

    def faults(self) -> dict[str, dict[str, Any]]:
        """What was wrong in the last observation, name -> numbers: reflex, user_stopped, motion_refused, gripper_failed."""
        return self._faults

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """ValueError for other features than `action_features`, or for a number that is not finite."""
        if set(action) != set(self._features):
            raise ValueError(f"the action has features {sorted(action)}, this robot takes {sorted(self._features)}.")
        row = np.array([float(action[name]) for name in self._features])
        if not np.isfinite(row).all():
            raise ValueError(f"the action {row.tolist()} is not finite.")
        link, hand = self._reach()
        now = link.read()
        self._mend()
        if now.faults:
            self._steps.begin(now.joints)
            still = np.zeros(6) if self.config.action == "relative_pose" else now.joints
            return dict(zip(self._features, map(float, [*still, hand.command]), strict=True))
        hand.command = OPEN if row[-1] > 0 else CLOSED
        if self.config.action == "joints":
            sent = target = self._within(row[:7], now.joints)
        else:
            before = self._steps.pose
            wanted = self._steps.step(now.joints, row)
            target = self._within(wanted, now.joints)
            if not np.allclose(target, wanted, rtol=0, atol=1e-9):
                self._steps.begin(target)  # what is out of reach is not saved up
            sent = self._steps.moved(before)
        link.go(target)
        return dict(zip(self._features, map(float, [*sent, hand.command]), strict=True))

    def hold(self) -> None:
        """Stop where the arm is, and stay; a reflex that was told is recovered from."""
        if self._link is None:
            raise DeviceNotConnectedError("The Franka is not connected.")
        self._mend()
        self._link.stop()
        self._steps.begin(self._link.read().joints)

    def disconnect(self) -> None:
        """Come to rest and leave."""
        link, hand = self._reach()
        link.close()
        hand.close()
        for camera in self.cameras.values():
            camera.disconnect()
        self._link = self._hand = None

    def _within(self, target: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """The joint target (7,) in range (a joint that is outside goes no farther out), and not too far ahead of the joints."""
        ahead = np.clip(target, np.minimum(self._low, joints), np.maximum(self._high, joints)) - joints
        lead = self.config.limits.lead
        return joints + ahead * min(1.0, lead / max(float(np.abs(ahead).max()), lead))

    def _note(self, faults: dict[str, dict[str, Any]]) -> None:
        for name in faults.keys() - self._faults.keys():
            log.warning("the Franka at %s says %s: %s", self.config.hostname, name, faults[name])
        self._faults = faults

    def _mend(self) -> None:
        """Go on after the faults of the last observation."""
        if self._hand is not None and "gripper_failed" in self._faults:
            self._hand.failure = None
        if self._link is not None and self._faults:
            self._link.mend()

    def _reach(self) -> tuple[Link, Hand]:
        if self._link is None or self._hand is None:
            raise DeviceNotConnectedError("The Franka is not connected.")
        if self._hand.lost is not None:
            raise DeviceNotConnectedError(f"The hand at {self.config.hostname} does not answer any more: {self._hand.lost}")
        return self._link, self._hand


class Steps:
    """Relative actions -> joint targets through the playtable's own command, for one arm without a table.

    base: (3,) metres. pose: (6,) the target that steps move, metres and extrinsic xyz Euler angles.
    """

    def __init__(self, config: FrankaConfig) -> None:
        self.base, self._rest = np.array(config.base, np.float64), np.array(config.rest, np.float64)
        self._leash = np.array(config.limits.leash, np.float64)
        self._qpos, self._memory, self._ctrl = np.zeros((1, FINGERS)), np.zeros((1, 11)), np.zeros((1, 9))

    @property
    def pose(self) -> np.ndarray:
        return self._memory[0, :6].copy()

    def begin(self, joints: np.ndarray) -> None:
        """The target is where the joints (7,) are."""
        position, rotation, _ = forward(joints, self.base)
        self._memory[0, :6] = *position, *matrix_to_euler(rotation)

    def step(self, joints: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Joint target (7,) of an action (7,) at the measured joints (7,)."""
        self._qpos[0, ARM:FINGERS] = joints
        dynamics.command(action[None], self._qpos, self._memory, self._ctrl, self.base, self._rest, self._leash)
        return self._ctrl[0, :7].copy()

    def moved(self, before: np.ndarray) -> np.ndarray:
        """By how many units (6,) the target has moved since `before`, a pose."""
        by = self.pose - before
        by[3:] = (by[3:] + np.pi) % (2 * np.pi) - np.pi
        return by / UNITS
