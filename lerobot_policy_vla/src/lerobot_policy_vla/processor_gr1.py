"""GR-1's processors, by the name under which LeRobot looks for them: LeRobot's own, which here only batch and move tensors."""

from lerobot.processor import make_default_pre_post_processors as make_gr1_pre_post_processors

__all__ = ["make_gr1_pre_post_processors"]
