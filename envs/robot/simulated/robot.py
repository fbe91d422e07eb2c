"""The client's side of the simulated robot: LeRobot's `Robot`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from envs.playtable.world import ACTION_ENTRIES, STATE_ENTRIES
from envs.robot.simulated.config import SimulatedPlaytableConfig
from envs.robot.simulated.wire import Wire

START_S = 180.0
"""Seconds that the robot's process may take to come up: it may have to compile."""
STATE_FEATURES = tuple(f"{entry.name}.pos" for entry in STATE_ENTRIES)
ACTION_FEATURES = tuple(f"{entry.name}.vel" for entry in ACTION_ENTRIES)
"""Steps of the hand end in .vel: LeRobot's rollout sends back to a start pose whatever it knows as .pos."""


class SimulatedPlaytable(Robot):
    """The playtable's arm and cameras. `connect` starts its process, `disconnect` leaves it holding.

    Observations are the newest readings, features `tcp_x.pos`, ..., `gripper_action.pos` (SI units) and one picture for each
    camera; actions are steps `delta_x.vel`, ..., `gripper.vel` with CALVIN's meaning.
    Every call raises DeviceNotConnectedError once the process is gone or the link is cut.
    """

    config_class = SimulatedPlaytableConfig
    name = "playtable"

    def __init__(self, config: SimulatedPlaytableConfig) -> None:
        self._wire: Wire | None = None
        self._process: subprocess.Popen | None = None
        super().__init__(replace(config, calibration_dir=Path(__file__).parent))  # it has none, but LeRobot makes the folder
        self.config = config
        self.cameras = {name: (int(h), int(w)) for name, (h, w) in config.sizes.items()}

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(STATE_FEATURES, float), **{name: (*size, 3) for name, size in self.cameras.items()}}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ACTION_FEATURES, float)

    @property
    def is_connected(self) -> bool:
        if self._wire is None or self._process is None or self._process.poll() is not None:
            return False
        return not self._wire.disturbance().cut

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """A simulated arm needs none."""

    def configure(self) -> None:
        """Nothing to set."""

    def connect(self, calibrate: bool = True) -> None:
        if self.is_connected:
            raise DeviceAlreadyConnectedError()
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        folder = Path(self.config.folder or tempfile.mkdtemp(prefix="playtable-", dir=memory))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), default=str))
        wire = Wire(folder, self.cameras, create=True)
        wire.disturb(self.config.disturbance)
        wire.header["client"] = os.getpid()
        command = [sys.executable, "-m", "envs.robot.simulated.process", str(folder)]
        self._process = subprocess.Popen(command, start_new_session=True)  # an arm outlives the terminal that drives it
        until = time.monotonic() + START_S
        while not wire.header["samples"]:
            if self._process.poll() is not None or time.monotonic() > until:
                raise DeviceNotConnectedError(f"The simulated robot did not come up (status {self._process.poll()}).")
            time.sleep(0.02)
        self._wire = wire

    def get_observation(self) -> dict[str, Any]:
        sample = self._reach().newest()
        self._times = {"": sample["state_time"], **sample["times"]}
        state = dict(zip(STATE_FEATURES, sample["state"].tolist(), strict=True))
        return {**state, **{name: sample[name] for name in self.cameras}}

    def stamps(self) -> dict[str, int]:
        """When the last observation was taken, monotonic ns: camera -> time, and "" for the joints."""
        return dict(self._times)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """ValueError for other features than `action_features`, or for a number that is not finite."""
        if set(action) != set(ACTION_FEATURES):
            raise ValueError(f"the action has features {sorted(action)}, this robot takes {sorted(ACTION_FEATURES)}.")
        row = np.array([float(action[name]) for name in ACTION_FEATURES])
        if not np.isfinite(row).all():
            raise ValueError(f"the action {row.tolist()} is not finite.")
        self._reach().command(time.monotonic_ns(), row)
        return dict(zip(ACTION_FEATURES, row.tolist(), strict=True))

    def hold(self) -> None:
        """Stop where the hand is, and stay."""
        self._reach().command(time.monotonic_ns(), None)

    def judge(self, task: int) -> None:
        """From now on `solved` is about task number `task` of the playtable's table; -1: about none."""
        if self._wire is not None:
            self._wire.judge(task)

    @property
    def solved(self) -> bool:
        """Whether that task is done, as only a simulation can know; never while there is no link."""
        return self._wire is not None and self._wire.solved

    def disturb(self, **changes: Any) -> None:
        """Change some fields of the disturbance from now on."""
        assert self._wire is not None
        self._wire.disturb(replace(self._wire.disturbance(), **changes))

    def disconnect(self) -> None:
        """Hold and leave; the process ends by itself."""
        if self._wire is None:
            raise DeviceNotConnectedError()
        self._wire.command(time.monotonic_ns(), None)
        self._wire.header["leave"] = 1
        if self.config.linger_s == 0 and self._process is not None:
            self._process.wait(timeout=START_S)
        self._wire = self._process = None

    def _reach(self) -> Wire:
        if not self.is_connected or self._wire is None:
            raise DeviceNotConnectedError("The simulated robot does not answer.")
        return self._wire
