"""Any robot that LeRobot knows, as a world."""

from envs.robot.world import RobotWorld

__all__ = ["RobotWorld"]
