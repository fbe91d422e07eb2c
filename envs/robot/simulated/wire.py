"""What the simulated robot's process and its client share: one memory-mapped file of rings.

    header              who is there, how many commands and samples were written, what is wrong with the sensors; which task
                        the client asked about, how often it asked, and the last of these questions whose task is done
    commands[SLOTS]     client -> robot, each with the time at which it was sent
    samples[SLOTS]      robot -> client, each with the times at which its parts were taken

Each side writes a slot first and its count last, so that neither ever waits for the other, however the other died. All times
are nanoseconds of the monotonic clock, which processes of one machine share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from envs.robot.simulated.config import Disturbance

SLOTS = 16
FILE = "wire"
STATE_SIZE, ACTION_SIZE = 15, 7
SWITCHES = ("frozen", "silent", "cut")
"""The fields of a disturbance that are yes or no."""


class Wire:
    """The mapped file at `folder`. `create` makes it; without it the file must exist and have this layout."""

    def __init__(self, folder: str | Path, sizes: Mapping[str, tuple[int, int]], create: bool = False) -> None:
        cameras = [(name, "u1", (*size, 3)) for name, size in sizes.items()]
        counters = ("robot", "client", "leave", "commands", "samples", "holding", "beat", "steps", "task", "asked", "solved")
        layout = np.dtype(
            [
                ("header", [(name, "i8") for name in counters]),
                ("disturbance", [(f.name, "f8") for f in fields(Disturbance)]),
                ("commands", [("time", "i8"), ("hold", "i8"), ("action", "f8", ACTION_SIZE)], SLOTS),
                (
                    "samples",
                    [("state_time", "i8"), ("times", "i8", (len(cameras),)), ("state", "f8", STATE_SIZE), *cameras],
                    SLOTS,
                ),
            ],
            align=True,
        )
        path = Path(folder, FILE)
        if create:
            path.write_bytes(bytes(layout.itemsize))
        self.sizes = dict(sizes)
        self._map = np.memmap(path, layout, "r+", shape=(1,))[0]
        self.header = self._map["header"]

    def disturb(self, disturbance: Disturbance) -> None:
        for name, value in asdict(disturbance).items():
            self._map["disturbance"][name] = float(value)

    def disturbance(self) -> Disturbance:
        row = self._map["disturbance"]
        values: dict[str, Any] = {f.name: row[f.name].item() for f in fields(Disturbance)}
        return Disturbance(**{name: bool(v) if name in SWITCHES else v for name, v in values.items()})

    def command(self, time_ns: int, action: np.ndarray | None) -> None:
        """Send an action (7,), or None for a hold."""
        count = int(self.header["commands"])
        slot = self._map["commands"][count % SLOTS]
        slot["time"], slot["hold"] = time_ns, action is None
        slot["action"] = 0.0 if action is None else action
        self.header["commands"] = count + 1

    def commands(self, since: int) -> list[tuple[int, np.ndarray | None]]:
        """(time, action or None) of the commands from number `since` on; the oldest are gone if there are too many."""
        count = int(self.header["commands"])
        slots = [self._map["commands"][k % SLOTS] for k in range(max(since, count - SLOTS + 1), count)]
        return [(int(s["time"]), None if s["hold"] else s["action"].copy()) for s in slots]

    def judge(self, task: int) -> None:
        """Ask for a verdict on task number `task` from now on; -1 for none."""
        self.header["task"] = task
        self.header["asked"] += 1

    @property
    def solved(self) -> bool:
        """Whether the task that was asked about last is done."""
        return bool(self.header["asked"] and self.header["solved"] == self.header["asked"])

    def publish(self, state_time: int, state: np.ndarray, frames: Mapping[str, tuple[int, np.ndarray]]) -> None:
        """Make a sample visible: frames are camera -> (time, picture)."""
        count = int(self.header["samples"])
        slot = self._map["samples"][count % SLOTS]
        slot["state_time"], slot["state"] = state_time, state
        slot["times"] = [frames[name][0] for name in self.sizes]
        for name in self.sizes:
            slot[name] = frames[name][1]
        self.header["samples"] = count + 1

    def newest(self) -> dict[str, Any]:
        """The newest sample, whole: state_time, state (15,), times (camera -> ns), and a picture for each camera."""
        while True:
            count = int(self.header["samples"])
            slot = self._map["samples"][(count - 1) % SLOTS]
            sample: dict[str, Any] = {name: slot[name].copy() for name in ("state", *self.sizes)}
            sample["state_time"] = int(slot["state_time"])
            sample["times"] = dict(zip(self.sizes, slot["times"].tolist(), strict=True))
            if int(self.header["samples"]) - count < SLOTS - 1:  # the slot was not written anew meanwhile
                return sample
