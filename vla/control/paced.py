"""A world in real time: every step ends at the next deadline of an absolute clock.

    deadline k        sense | policy, record | command                       deadline k + 1
    |----------------------------------------->|......... sleep, spin ........|
      lateness ^  sensing ^            reaction ^

The command goes out as soon as it is known; the observation is read at the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import VectorEnv

from vla.control.cadence import Cadence
from vla.control.clock import Clock
from vla.spec import Spec

TIME = "observation.time"
"""int64 (1,): when the observation was measured, ns of the monotonic clock."""
CYCLE = "observation.cycle"
"""int64 (1,): when the control step in which it was read began by plan."""

Observation = dict[str, np.ndarray]


class Arm(Protocol):
    """A world of one that can be commanded and read apart. Arrays have a leading 1."""

    vla_spec: Spec

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Observation, dict[str, Any]]: ...

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Command the action (1, A); gives what was really sent."""
        ...

    def hold(self) -> np.ndarray:
        """Command the arm to stop and stay; gives the action (1, A) that says so."""
        ...

    def sense(self) -> tuple[Observation, dict[str, Any]]:
        """Observation of now; infos with `time_ns` and `camera_times_ns`."""
        ...

    def close(self) -> None: ...


class Paced(VectorEnv):
    """`arm` in real time. Observations get TIME and CYCLE; infos get `sent`, `sent_ns`, `lateness_us`, `sensing_us`."""

    def __init__(self, arm: Arm, cadence: Cadence) -> None:
        self.arm, self.cadence = arm, cadence
        self.num_envs, self.vla_spec = 1, arm.vla_spec
        self.clock = Clock(float(arm.vla_spec.control_hz or 0))
        self._begun = 0

    def reset(self, *, seed: Any = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Observe; the first cycle begins now."""
        self.arm.reset(seed=seed, options=options)
        self.clock.start()
        self._begun = self._begun or time.monotonic_ns()
        return self._sense({"lateness_us": 0.0})

    def step(self, actions: np.ndarray) -> Any:
        """Send the action (1, A), wait for the next deadline, observe."""
        return self._cycle(lambda: self.arm.send(actions))

    def stay(self) -> Any:
        """A step in which the arm holds."""
        return self._cycle(self.arm.hold)

    def idle(self) -> None:
        """Let a cycle pass without command or observation."""
        self._wait()

    def _cycle(self, command: Callable[[], np.ndarray]) -> Any:
        start = time.monotonic_ns()
        sent = command()
        end = time.monotonic_ns()
        self.cadence.add("command", end - start)
        self.cadence.add("reaction", end - self.clock.now)
        observation, infos = self._sense({"lateness_us": self._wait() / 1e3, "sent": sent, "sent_ns": end})
        no = np.zeros(1, bool)
        return observation, np.zeros(1), no, no.copy(), infos

    def _wait(self) -> int:
        late = self.clock.wait()
        self.cadence.add("lateness", late)
        self.cadence.cycles += 1
        self.cadence.missed = self.clock.missed
        self.cadence.seconds = (time.monotonic_ns() - self._begun) / 1e9
        return late

    def _sense(self, infos: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        start = time.monotonic_ns()
        observation, more = self.arm.sense()
        took = time.monotonic_ns() - start
        self.cadence.add("sensing", took)
        stamps = {TIME: np.array([more["time_ns"]]), CYCLE: np.array([self.clock.now])}
        return {**observation, **stamps}, {**more, **infos, "sensing_us": took / 1e3}

    def close_extras(self, **kwargs: Any) -> None:
        self.arm.close()
