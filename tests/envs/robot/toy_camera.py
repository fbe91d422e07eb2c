"""A LeRobot camera without hardware: a new picture at every look, until it is frozen."""

import time
from dataclasses import dataclass

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.cameras.configs import CameraConfig


@CameraConfig.register_subclass("toy")
@dataclass(kw_only=True)
class ToyCameraConfig(CameraConfig):
    seed: int = 0


class ToyCamera(Camera):
    def __init__(self, config: ToyCameraConfig):
        super().__init__(config)
        self.rng, self.latest_timestamp, self.connected = np.random.default_rng(config.seed), None, False

    is_connected = property(lambda self: self.connected)

    @staticmethod
    def find_cameras():
        return []

    def connect(self, warmup=True):
        self.connected = True

    def disconnect(self):
        self.connected = False

    def read(self):
        return self.read_latest()

    def async_read(self, timeout_ms=200):
        return self.read_latest()

    def read_latest(self, max_age_ms=500):
        self.latest_timestamp = time.perf_counter()
        return self.rng.integers(0, 256, (self.height, self.width, 3), np.uint8)
