"""F1, by the name under which LeRobot looks for it."""

from lerobot_policy_vla.configuration_f1 import F1Config
from lerobot_policy_vla.policy import VlaPolicy


class F1Policy(VlaPolicy):
    config_class = F1Config
    name = "f1"
