"""The playtable behind LeRobot's `Robot` interface, and keys to drive it, as a plug-in: `--robot.type=playtable` and
`--teleop.type=playtable_keys`. LeRobot's commands find it by themselves where `lerobot_policy_vla` is installed, and else by
`--robot.discover_packages_path=envs.robot.simulated`.

`lerobot-rollout` moves a robot back to its start by sending positions as actions; this robot's actions are steps, so give it
`--return_to_initial_position=false`.
"""

from envs.robot.simulated.config import Disturbance, PlaytableKeysConfig, SimulatedPlaytableConfig
from envs.robot.simulated.keys import PlaytableKeys
from envs.robot.simulated.robot import SimulatedPlaytable

__all__ = ["Disturbance", "PlaytableKeys", "PlaytableKeysConfig", "SimulatedPlaytable", "SimulatedPlaytableConfig"]
