"""Any policy of LeRobot's registry, plug-ins of others included, in our loop."""

from policies.lerobot.policy import LeRobot

__all__ = ["LeRobot"]
