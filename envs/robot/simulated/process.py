"""The simulated robot itself: a process that steps the playtable in real time, whoever watches and whoever dies.

    python -m envs.robot.simulated.process FOLDER      FOLDER/config.json says what robot; FOLDER/wire is its memory

Thirty times a second it takes the commands that came since the last step (steps of the hand add up, so that none is lost),
moves, and takes its pictures; each sensor's reading is published when its delay is over. Without a command for `watchdog_ms`
it holds: the target goes to where the hand is.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import envs.playtable as playtable
from envs.playtable.chains import evaluation_chains
from envs.playtable.dynamics import POSITION_STEP, ROTATION_STEP
from envs.playtable.scene import CONTROL_HZ
from envs.playtable.tasks import TASKS, is_solved
from envs.robot.simulated.wire import Wire
from vla.spec import STATE, image_key

STILL = np.zeros(7)
UNITS = np.repeat([POSITION_STEP, ROTATION_STEP], 3)
TARGET = slice(-13, -7)
"""The target pose in a row of `Playtable.save()`: the first six of userdata's eleven, before look and scene."""
MOST = 2.0
"""Units of an action entry that one step carries out at most, however many commands came at once."""


class Simulation:
    """One playtable and its clock. `config`: the fields of `SimulatedPlaytableConfig`."""

    def __init__(self, folder: str, config: dict[str, Any]) -> None:
        self.config = config
        self.sizes = {name: tuple(size) for name, size in config["sizes"].items()}
        self.world = playtable.make(config["scene"], 1, self.sizes)
        self.rng = np.random.default_rng(config["seed"])
        self.grain = self.rng.normal(size=2**20).astype(np.float32)
        chain = evaluation_chains(config["start"] + 1)[-1]
        start = {"robot_obs": chain.robot_obs[None], "scene_obs": chain.scene_obs[None]}
        self.world.reset(options=start)
        self.world.step(STILL[None])  # compiles, so that the first step in real time is as quick as the others
        self.observation, _ = self.world.reset(options=start)
        self.wire = Wire(folder, self.sizes, create=False)
        self.pending: list[tuple[int, int, str, int, np.ndarray]] = []  # ready, number, sensor, taken, reading
        self.current: dict[str, tuple[int, np.ndarray]] = {}
        self.taken = self.number = 0
        self.holding = False
        self.asked, self.start_state = 0, self.world.states([0])[0]  # of the question that is being judged
        self.last_command = time.monotonic_ns()

    def run(self) -> None:
        """Until the client says goodbye, or is dead, and `linger_s` has passed."""
        begin, step, left = time.monotonic_ns(), 0, None
        self._measure()
        self.wire.header["robot"] = os.getpid()
        while True:
            due = begin + step * 10**9 // CONTROL_HZ
            now = time.monotonic_ns()
            if now >= due:
                self._step(now)
                step = max(step + 1, (now - begin) * CONTROL_HZ // 10**9)  # a stalled machine skips, it does not race
                self._measure()
                if self._deserted():
                    left = left or now
                    if now - left >= self.config["linger_s"] * 1e9:
                        return
            self._publish()
            next_event = min([begin + step * 10**9 // CONTROL_HZ, *(p[0] for p in self.pending[:1])])
            time.sleep(max(0.0, (next_event - time.monotonic_ns()) / 1e9))

    def _step(self, now: int) -> None:
        commands = self.wire.commands(self.taken)
        self.taken = int(self.wire.header["commands"])
        action, moves = STILL.copy(), []
        for sent, command in commands:
            self.last_command = max(self.last_command, sent)
            moves = [*moves, command] if command is not None else []
            if command is None:
                self._hold()
        if moves:
            self.holding = False
            action[:6] = np.clip(np.sum(moves, axis=0)[:6], -MOST, MOST)
            action[6] = moves[-1][6]
        else:
            action[6] = self.observation[STATE][0, 14]
            if now - self.last_command > self.config["watchdog_ms"] * 1e6:
                self._hold()
        if self.pull is not None:
            action[:6] = self.pull
        self.observation, *_ = self.world.step(action[None])
        self.pull = None
        self.wire.header["holding"] = self.holding
        self.wire.header["steps"] += 1
        self.wire.header["beat"] = now
        self._judge()

    pull: np.ndarray | None = None
    """The step (6,) that brings the target to the hand, where a hold begins."""

    def _hold(self) -> None:
        if not self.holding:
            self.pull = (self.observation[STATE][0, :6] - self.world.save()[0, TARGET]) / UNITS
            self.pull[3:] = (self.pull[3:] * ROTATION_STEP + np.pi) % (2 * np.pi) / ROTATION_STEP - np.pi / ROTATION_STEP
            self.holding = True

    def _judge(self) -> None:
        """Whether what the client asked about is done, by the rules of the benchmark and the true state."""
        asked, task = int(self.wire.header["asked"]), int(self.wire.header["task"])
        if asked != self.asked:
            self.asked, self.start_state = asked, self.world.states([0])[0]
        elif asked and task >= 0 and not self.wire.solved:
            done = is_solved(TASKS[task], self.start_state, self.world.states([0])[0])
            self.wire.header["solved"] = asked if done else 0

    def _measure(self) -> None:
        """Read every sensor; what is read becomes visible when its delay is over."""
        wrong, now = self.wire.disturbance(), time.monotonic_ns()
        if wrong.silent:
            return
        self._queue(now, "", wrong.state_latency_ms, self.observation[STATE][0])
        for name in self.sizes:
            if self.rng.random() < wrong.drop and name in self.current:
                continue
            late = wrong.latency_ms + (self.rng.exponential(wrong.jitter_ms) if wrong.jitter_ms else 0.0)
            picture = self.observation[image_key(name)][0]
            if wrong.frozen and name in self.current:
                picture = self.current[name][1]
            elif wrong.noise:
                at = self.rng.integers(len(self.grain) - picture.size)
                grain = self.grain[at : at + picture.size].reshape(picture.shape)
                picture = np.clip(np.rint(picture + wrong.noise * grain), 0, 255).astype(np.uint8)
            self._queue(now, name, late, picture)

    def _queue(self, now: int, sensor: str, late_ms: float, reading: np.ndarray) -> None:
        if sensor not in self.current:  # the first reading is there at once
            self.current[sensor] = (now, reading.copy())
        self.number += 1
        heapq.heappush(self.pending, (now + int(late_ms * 1e6), self.number, sensor, now, reading.copy()))

    def _publish(self) -> None:
        fresh = False
        while self.pending and self.pending[0][0] <= time.monotonic_ns():
            _, _, sensor, taken, reading = heapq.heappop(self.pending)
            if taken >= self.current[sensor][0]:  # jitter may let a later frame overtake
                self.current[sensor], fresh = (taken, reading), True
        if fresh:
            self.wire.publish(*self.current[""], {name: self.current[name] for name in self.sizes})

    def _deserted(self) -> bool:
        client = int(self.wire.header["client"])
        if self.wire.header["leave"]:
            return True
        with contextlib.suppress(PermissionError):
            try:
                os.kill(client, 0)
            except ProcessLookupError:
                return True
        return False


def main(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's business: an arm does not hear it
    config = json.loads(Path(folder, "config.json").read_text())
    try:
        Simulation(folder, config).run()
    finally:
        if config["folder"] is None:  # nobody else knows where it is
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
