"""The playtable behind LeRobot's `Robot` interface, as a plug-in: `--robot.type=playtable` with
`--robot.discover_packages_path=envs.robot.simulated`.

`lerobot-rollout` moves a robot back to its start by sending positions as actions; this robot's actions are steps, so give it
`--return_to_initial_position=false`.
"""

from envs.robot.simulated.config import Disturbance, SimulatedPlaytableConfig
from envs.robot.simulated.robot import SimulatedPlaytable

__all__ = ["Disturbance", "SimulatedPlaytable", "SimulatedPlaytableConfig"]
