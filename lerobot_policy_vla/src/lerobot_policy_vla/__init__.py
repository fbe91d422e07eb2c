"""A plug-in of LeRobot, whose commands import this module at their start: `--policy.type=gr1` and `f1`, `--env.type=playtable`
and `--robot.type=playtable`."""

import envs.robot.simulated  # noqa: F401
from lerobot_policy_vla import env
from lerobot_policy_vla.configuration_f1 import F1Config
from lerobot_policy_vla.configuration_gr1 import Gr1Config

__all__ = ["F1Config", "Gr1Config", "env"]
