"""LeRobot teleoperators without hardware, in LeRobot's registry: what the person does is written into HAND."""

import time
from dataclasses import dataclass

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig
from lerobot.teleoperators.utils import TeleopEvents

HAND = {}
"""move: dx, what they say; drives: whether they say that a person drives; fault: raise, hang, nan, or None."""


@TeleoperatorConfig.register_subclass("scripted_leader")
@dataclass
class ScriptedLeaderConfig(TeleoperatorConfig):
    calibrated: bool = True
    broken: bool = False
    drives: bool = False
    move: float = 0.0


@TeleoperatorConfig.register_subclass("scripted_stick")
@dataclass
class ScriptedStickConfig(ScriptedLeaderConfig):
    pass


class ScriptedLeader(Teleoperator):
    """It does not tell whether a person drives."""

    config_class = ScriptedLeaderConfig
    name = "scripted_leader"

    def __init__(self, config):
        super().__init__(config)
        self.config, self.connected = config, False
        HAND.update(move=config.move, drives=config.drives, fault=None, device=self, asked=0)

    action_features = property(lambda self: {"x.vel": float, "grip": float})
    feedback_features = property(lambda self: {})
    is_connected = property(lambda self: self.connected)
    is_calibrated = property(lambda self: self.config.calibrated)

    def connect(self, calibrate=True):
        assert not calibrate, "nobody may be asked for a calibration"
        if self.config.broken:
            raise RuntimeError("no servo\nanswers")
        self.connected = True

    def disconnect(self):
        self.connected = False

    def calibrate(self): ...

    def configure(self): ...

    def send_feedback(self, feedback): ...

    def get_action(self):
        HAND["asked"] += 1
        while HAND["fault"] == "hang":
            time.sleep(0.01)
        if HAND["fault"] == "raise":
            raise ConnectionError("no answer")
        return {"x.vel": 100 * (float("nan") if HAND["fault"] == "nan" else HAND["move"]), "grip": 1.0}


class ScriptedStick(ScriptedLeader):
    """It tells whether a person drives."""

    config_class = ScriptedStickConfig
    name = "scripted_stick"

    def get_teleop_events(self):
        return {TeleopEvents.IS_INTERVENTION: HAND["drives"]}
