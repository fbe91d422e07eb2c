"""`--policy.type=gr1`. LeRobot finds modeling_gr1 and processor_gr1 by the name of this module."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from lerobot_policy_vla.config import VlaConfig


@PreTrainedConfig.register_subclass("gr1")
@dataclass
class Gr1Config(VlaConfig):
    """GR-1; presets gr1_small, gr1_medium and gr1."""

    preset: str = "gr1_small"
