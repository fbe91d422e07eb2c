"""A LeRobot robot without hardware: two joints in degrees and a camera, as LeRobot's arms give them."""

from dataclasses import dataclass

import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("toy")
@dataclass(kw_only=True)
class ToyConfig(RobotConfig):
    start: float = 90.0


class Toy(Robot):
    config_class = ToyConfig
    name = "toy"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.joints = {"shoulder.pos": config.start, "elbow.pos": 0.0}
        self.connected, self.sent = False, []

    observation_features = property(lambda self: {**dict.fromkeys(self.joints, float), "front": (4, 6, 3)})
    action_features = property(lambda self: dict.fromkeys(self.joints, float))
    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True):
        self.connected = True

    def disconnect(self):
        self.connected = False

    def calibrate(self): ...

    def configure(self): ...

    def get_observation(self):
        return {**self.joints, "front": np.full((4, 6, 3), 7, np.uint8)}

    def send_action(self, action):
        self.sent.append(dict(action))
        self.joints = {name: min(value, 100.0) for name, value in action.items()}
        return dict(self.joints)
