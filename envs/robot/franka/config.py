"""The Franka's configuration in LeRobot's registry: `--robot.type=franka`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.cameras.configs import CameraConfig
from lerobot.robots.config import RobotConfig

Seven = tuple[float, float, float, float, float, float, float]


@dataclass(kw_only=True)
class FrankaLimits:
    """What the arm may be told, whoever tells it. Radians.

    low, high: range of the joints' targets; by default what FR3 and Panda both can, less 0.05. lead: how far a target may be
    ahead of its joint. leash: how far the target pose of relative actions may be ahead of the hand, metres an axis and radians
    an angle. dynamics: share of the arm's greatest velocity, acceleration and jerk that a motion may use.
    torque, force: contact in Nm and N beyond which the arm stops in a reflex.
    """

    low: Seven = (-2.69, -1.71, -2.84, -2.99, -2.75, 0.60, -2.84)
    high: Seven = (2.69, 1.71, 2.84, -0.21, 2.75, 3.70, 2.84)
    lead: float = 0.4
    leash: tuple[float, float] = (0.06, 0.3)
    dynamics: float = 0.2
    torque: float = 20.0
    force: float = 30.0


@RobotConfig.register_subclass("franka")
@dataclass(kw_only=True)
class FrankaConfig(RobotConfig):
    """hostname: of the arm's controller. action: "relative_pose" (steps of 0.02 m and 0.05 rad, as in CALVIN) or "joints".

    base: where the arm's base stands in the frame of poses, metres; it is not turned. rest: posture that inverse kinematics
    prefers among those that reach a pose, radians. recover: whether a reflex is recovered from, once it was told.
    gripper_speed, gripper_force: m/s and N. realtime: whether a real-time kernel is demanded, as a real arm needs it.
    """

    hostname: str
    action: str = "relative_pose"
    base: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rest: Seven = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)
    limits: FrankaLimits = field(default_factory=FrankaLimits)
    recover: bool = True
    gripper_speed: float = 0.1
    gripper_force: float = 20.0
    realtime: bool = True
    cameras: dict[str, CameraConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action not in ("relative_pose", "joints"):
            raise ValueError(f"action is {self.action!r}: use relative_pose or joints")
        if not 0 < self.limits.dynamics <= 1:
            raise ValueError(f"limits.dynamics is {self.limits.dynamics}: give a share above 0, 1 at most")
