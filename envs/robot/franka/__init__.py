"""A Franka arm (FR3 or Panda) with its hand as a LeRobot robot, through franky-control: `--robot.type=franka` with
`--robot.discover_packages_path=envs.robot.franka`.

Needs the extra: `pip install hydra-vla[franka]`. Wheels of franky-control are made for one version of the arm's own
software each; PyPI's is for the present FR3, its manual lists those for others and for the Panda. Relative actions are steps,
so that `lerobot-rollout` needs `--return_to_initial_position=false`.
"""

from envs.robot.franka.config import FrankaConfig
from envs.robot.franka.robot import Franka

__all__ = ["Franka", "FrankaConfig"]
