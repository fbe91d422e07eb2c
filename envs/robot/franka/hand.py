"""The gripper, in a thread of its own: its controller answers slowly, and a command takes as long as the fingers do."""

from __future__ import annotations

import threading
from typing import Any

from envs.robot.franka.config import FrankaConfig

OPEN, CLOSED = 1.0, -1.0
PERIOD_S = 0.02
ANY_WIDTH = 0.1
"""Tolerance of a grasp in metres: whatever is between the fingers is held, and so is nothing."""


class Hand:
    """width: metres between the fingers, as last read. failure: what the last command failed with, until it is taken. lost: why
    nothing is heard any more.

    A command is carried out to its end before the next one begins; of those that come meanwhile, the last counts.
    """

    def __init__(self, config: FrankaConfig) -> None:
        import franky

        self._franky, self._config = franky, config
        self._gripper = franky.Gripper(config.hostname)
        state = self._gripper.state
        self.width = float(state.width)
        self.command = OPEN if self.width > state.max_width / 2 else CLOSED
        self.failure: str | None = None
        self.lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="franka hand", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the fingers as they are."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        done, future = self.command, None
        while not self._ended.wait(PERIOD_S):
            try:
                if future is not None and future.wait(0):
                    finished, future = future, None
                    if not finished.get():
                        self.failure = "the gripper did not get there"
                if future is None and self.command != done:
                    done = self.command
                    future = self._start(done)
                self.width = float(self._gripper.width)
            except self._franky.CommandException as error:
                self.failure = str(error)
            except Exception as error:
                self.lost = str(error)
                return

    def _start(self, command: float) -> Any:
        speed = self._config.gripper_speed
        if command == OPEN:
            return self._gripper.open_async(speed)
        return self._gripper.grasp_async(0.0, speed, self._config.gripper_force, ANY_WIDTH, ANY_WIDTH)
