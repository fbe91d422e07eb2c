"""GR-1, by the name under which LeRobot looks for it."""

from lerobot_policy_vla.configuration_gr1 import Gr1Config
from lerobot_policy_vla.policy import VlaPolicy


class Gr1Policy(VlaPolicy):
    config_class = Gr1Config
    name = "gr1"
