"""An arm that is there at once: a point in a square with a picture, and every fault a robot can have.

`log` holds what it was commanded, in order: actions (3,), or HOLD. `fault` names what is wrong with it now.
"""

import time
from dataclasses import replace

import numpy as np

from vla.control.clock import Clock
from vla.spec import STATE, Entry, Spec, image_key

HOLD = "hold"
HZ = 200.0
SPEC = Spec(
    cameras={"static": (4, 4)},
    state=(Entry("x", "m"), Entry("y", "m")),
    action=tuple(Entry(name, "1", -1.0, 1.0) for name in ("dx", "dy", "press")),
    action_kind="relative_pose",
    control_hz=HZ,
    frame="square",
)
LIMITS = {
    "state": {"x": (-1.0, 1.0)},
    "speed": {"x": 50.0},
    "action": {"dx": {"state": "x", "scale": 0.01, "low": -0.5, "high": 0.5, "lead": 0.05}},
}


class PatientClock(Clock):
    """For what has nothing to do with time: a machine that is busy does not make actions late."""

    overdue = False


ARMS: list["ToyArm"] = []
"""All that were made, the newest last."""


class ToyArm:
    def __init__(self, hz=HZ):
        ARMS.append(self)
        self.vla_spec = replace(SPEC, control_hz=hz)
        self.point, self.log, self.fault, self.closed = np.zeros(2), [], None, False
        self.rng, self.picture = np.random.default_rng(0), np.zeros((4, 4, 3), np.uint8)
        self.delay = 0.0

    @property
    def holding(self):
        return bool(self.log) and self.log[-1] is HOLD

    def reset(self, *, seed=None, options=None):
        self._need_link()
        return self.sense()

    def send(self, actions):
        self._need_link()
        if self.fault == "driver":
            raise KeyError("motor 3")
        self.log.append(np.array(actions[0]))
        self.point = self.point + 0.01 * actions[0, :2]
        return np.array(actions, np.float32)

    def hold(self):
        self._need_link()
        self.log.append(HOLD)
        return np.zeros((1, 3), np.float32)

    def sense(self):
        self._need_link()
        if self.delay:
            time.sleep(self.delay)
        now = time.monotonic_ns()
        if self.fault != "frozen_camera":
            self.picture = self.rng.integers(0, 256, (4, 4, 3), np.uint8)
        shown = {"state_not_finite": np.array([np.nan, 0]), "state_out_of_limits": np.array([1.5, 0])}
        state = shown.get(self.fault, self.point + (0.3 * self.rng.choice([-1, 1]) if self.fault == "too_fast" else 0.0))
        late = int(10e9)
        infos = {
            "time_ns": now - late * (self.fault == "stale_state"),
            "camera_times_ns": {"static": now - late * (self.fault == "stale_camera")},
        }
        return {image_key("static"): self.picture[None], STATE: state[None].astype(np.float32)}, infos

    def close(self):
        self.closed = True

    def _need_link(self):
        if self.fault == "connection_lost":
            raise ConnectionError("no answer")
