"""A terminal's keys as a LeRobot teleoperator for the simulated robot, over ssh and without a display, too.

a d   delta_x     w s   delta_y     r f   delta_z        space   open or close the gripper
j l   yaw         i k   pitch       u o   roll
"""

from __future__ import annotations

import contextlib
import os
import termios
import time
import tty
from typing import Any

from lerobot.teleoperators.teleoperator import Teleoperator
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from envs.playtable.world import ACTION_ENTRIES
from envs.robot.simulated.config import PlaytableKeysConfig

KEYS = {
    "d": (0, 1), "a": (0, -1), "w": (1, 1), "s": (1, -1), "r": (2, 1), "f": (2, -1),
    "o": (3, 1), "u": (3, -1), "i": (4, 1), "k": (4, -1), "j": (5, 1), "l": (5, -1),
}  # fmt: skip
"""Key -> entry of the action and its sign."""
FEATURES = tuple(f"{entry.name}.vel" for entry in ACTION_ENTRIES)
TAKEN_S = 1.0
"""For so long after a key a person counts as driving."""


class PlaytableKeys(Teleoperator):
    """Steps of the simulated robot's hand, `delta_x.vel`, ..., `gripper.vel`. A key counts for `key_s`: a terminal repeats the
    one that is held down, and never says that it is let go."""

    config_class = PlaytableKeysConfig
    name = "playtable_keys"

    def __init__(self, config: PlaytableKeysConfig) -> None:
        super().__init__(config)
        self.config = config
        self._fd: int | None = None
        self._before: list[Any] = []
        self._until = dict.fromkeys(KEYS, 0.0)
        self._last = -TAKEN_S
        self._gripper = config.gripper

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(FEATURES, float)

    @property
    def feedback_features(self) -> dict[str, Any]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self._fd is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Keys need none."""

    def configure(self) -> None:
        """Nothing to set."""

    def connect(self, calibrate: bool = True) -> None:
        """Let the terminal give keys as they are pressed, unseen. DeviceNotConnectedError if it is none."""
        if self.is_connected:
            raise DeviceAlreadyConnectedError()
        try:
            fd = os.open(self.config.terminal, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            self._before = termios.tcgetattr(fd)
            tty.setcbreak(fd)
        except (OSError, termios.error) as error:
            raise DeviceNotConnectedError(f"No terminal can be read at {self.config.terminal}: {error}") from error
        self._fd = fd

    def get_action(self) -> dict[str, Any]:
        if self._fd is None:
            raise DeviceNotConnectedError("The terminal is not connected.")
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for key in os.read(self._fd, 4096).decode(errors="ignore").lower():
                if key == " ":
                    self._gripper, self._last = (-1.0 if self._gripper > 0 else 1.0), now
                elif key in KEYS:
                    self._until[key], self._last = now + self.config.key_s, now
        action = [0.0] * 6
        for key, (entry, sign) in KEYS.items():
            if now < self._until[key]:
                action[entry] += sign * self.config.speed
        return dict(zip(FEATURES, [*action, self._gripper], strict=True))

    def get_teleop_events(self) -> dict[TeleopEvents, bool]:
        """Whether a person drives, as LeRobot's other teleoperators say it."""
        return {TeleopEvents.IS_INTERVENTION: time.monotonic() < self._last + TAKEN_S}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Keys feel nothing."""

    def disconnect(self) -> None:
        if self._fd is None:
            raise DeviceNotConnectedError()
        fd, self._fd = self._fd, None
        with contextlib.suppress(termios.error):  # it may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, self._before)
        os.close(fd)
