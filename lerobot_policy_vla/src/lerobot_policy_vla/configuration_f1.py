"""`--policy.type=f1`. LeRobot finds modeling_f1 and processor_f1 by the name of this module."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from lerobot_policy_vla.config import VlaConfig


@PreTrainedConfig.register_subclass("f1")
@dataclass
class F1Config(VlaConfig):
    """F1; presets f1_small, f1_medium and f1. A new one wants a checkpoint with a trained image tokenizer as `init_from`."""

    preset: str = "f1_small"
