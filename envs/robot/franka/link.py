"""The connection with the arm: its state, targets for its joints, and what is wrong with it.

franky moves the arm from a thread of its own at 1 kHz, within the arm's limits on velocity, acceleration and jerk. A new target
replaces the motion under way without a stop in between; the last one is held until a stop ends the motion and leaves the
arm to its own controller.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from lerobot.utils.errors import DeviceNotConnectedError

from envs.robot.franka.config import FrankaConfig

CONNECT_S = 5.0
"""Seconds that a connection may take; a host that does not answer would be waited for much longer."""
AGAIN_S = 1.0
"""Seconds between attempts to recover from a reflex."""
REST_S = 3.0
"""Seconds that the arm may take to come to rest before it is left."""
PERIOD_S = 0.005
REFLEX = ("Reflex", "AutomaticErrorRecovery")
READY = ("Idle", "Move")
"""Names of the arm's modes. In all others (stopped by its button, guided by hand) a person has to act."""


@dataclass(frozen=True)
class Reading:
    """joints: (7,) rad. time_ns: when they were read, on the monotonic clock; it stands still while the arm says nothing new.

    faults: {name: numbers}, out of "reflex", "user_stopped" and "motion_refused".
    """

    time_ns: int
    joints: np.ndarray
    faults: dict[str, dict[str, Any]]


class Link:
    """An arm that answers, read from a thread of its own, so that nobody waits for it.

    `lost` says why it does not answer any more; every call then raises DeviceNotConnectedError.
    """

    def __init__(self, config: FrankaConfig) -> None:
        import franky

        self._franky, self._config = franky, config
        kind = franky.RealtimeConfig.Enforce if config.realtime else franky.RealtimeConfig.Ignore
        bounds = config.limits
        self.lost: str | None = None
        self._moving = False
        self._said: str | None = None  # what the arm answered to a motion that it did not carry out
        self._mending: threading.Thread | None = None
        self._mended_at = 0.0
        self._clock = -1
        self._ended = threading.Event()
        try:
            self._arm = franky.Robot(config.hostname, bounds.dynamics, bounds.torque, bounds.force, realtime_config=kind)
            self._newest = self._read(0)
        except Exception as error:
            raise DeviceNotConnectedError(f"The arm at {config.hostname} cannot be driven: {_first(error)}") from error
        self._watcher = threading.Thread(target=self._watch, name="franka state", daemon=True)
        self._watcher.start()

    def read(self) -> Reading:
        """The arm's newest state."""
        self._need()
        return self._newest

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD_S):
            try:
                self._try(self._arm.poll_motion)
                self._newest = self._read(self._newest.time_ns)
            except Exception as error:
                self.lost = _first(error)
                return

    def _read(self, last_ns: int) -> Reading:
        state = self._arm.state
        clock = state.time.to_msec()
        time_ns = last_ns if clock == self._clock else time.monotonic_ns()
        self._clock = clock
        errors, mode = json.loads(repr(state.current_errors)), state.robot_mode.name
        faults: dict[str, dict[str, Any]] = {}
        if errors or mode in REFLEX:
            faults["reflex"] = {"errors": errors, "said": self._said}
        elif mode not in READY:
            faults["user_stopped"] = {"mode": mode}
        elif self._said:
            faults["motion_refused"] = {"said": self._said}
        return Reading(time_ns, np.array(state.q, np.float64), faults)

    def go(self, joints: np.ndarray) -> None:
        """Move the joints to (7,) rad from now on."""
        self._moving = True
        self._tell(self._arm.move, self._franky.JointMotion(joints, return_when_finished=False), asynchronous=True)

    def stop(self) -> None:
        """Come to rest as fast as the limits allow, and stay."""
        self._need()
        if self._moving and not self._newest.faults:
            self._tell(self._arm.move, self._franky.JointStopMotion(), asynchronous=True)
        self._moving = False

    def mend(self) -> None:
        """Go on after a fault that was told: recover from a reflex, if the configuration allows it. Does not wait."""
        if "reflex" not in self._newest.faults:
            self._said = None  # the arm can be moved, or a person has to see to it
            return
        now, busy = time.monotonic(), self._mending is not None and self._mending.is_alive()
        if busy or not self._config.recover or now - self._mended_at < AGAIN_S:
            return
        self._mended_at = now
        self._mending = threading.Thread(target=self._recover, name="franka recovery", daemon=True)
        self._mending.start()

    def _recover(self) -> None:
        try:
            self._arm.recover_from_errors()
            self._said = None
        except Exception as error:  # a lost connection is seen by the next reading, too
            self._said = _first(error)

    def close(self) -> None:
        """Leave the arm at rest."""
        with contextlib.suppress(DeviceNotConnectedError):
            self.stop()
            self._tell(self._arm.join_motion, REST_S)
        self._ended.set()
        self._watcher.join()

    def _tell(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._need()
        try:
            self._try(call, *arguments, **options)
        except Exception as error:
            self.lost = _first(error)
            self._need()

    def _try(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Ask the arm for a motion, or how it goes; that it was refused or aborted is noted. Any other error goes through."""
        try:
            call(*arguments, **options)
        except (self._franky.ControlException, self._franky.CommandException) as error:
            self._said = _first(error)

    def _need(self) -> None:
        if self.lost is not None:
            raise DeviceNotConnectedError(f"The arm at {self._config.hostname} does not answer any more: {self.lost}")


class Attempt(threading.Thread):
    """Connecting, which may take minutes, from a thread that nobody needs to wait for."""

    def __init__(self, config: FrankaConfig) -> None:
        super().__init__(name="franka connection", daemon=True)
        self._config = config
        self._link: Link | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._link = Link(self._config)
        except Exception as error:
            self._error = error

    def link(self) -> Link:
        """The arm once it answers; DeviceNotConnectedError after CONNECT_S, when one may ask again."""
        self.join(CONNECT_S)
        if self._error is not None:
            raise self._error
        if self._link is None:
            raise DeviceNotConnectedError(f"The arm at {self._config.hostname} has not answered for {CONNECT_S:g} s.")
        return self._link


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
