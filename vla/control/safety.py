"""Safety around a paced world, on by default: every fault makes the arm hold within one control period.

    fault                  what it is                                                    numbers in the log
    action_not_finite      the policy's action has a nan or an infinity                  the entries
    action_out_of_range    ... or lies outside the Spec's range                          the entries
    action_late            the cycle took longer than a period: the action is past       milliseconds
    state_not_finite, state_out_of_limits, too_fast     of the joints' readings          the entries
    stale_state, stale_camera    measured longer than `stale_s` ago                      age
    frozen_camera          the same picture, pixel for pixel, for `frozen_s`             seconds
    heartbeat              no command for `heartbeat_s`; seen from a thread of its own   seconds
    connection_lost        the robot's driver raised a ConnectionError or OSError        the error
    exception              anything else was raised                                      the error
    reflex, ...            the robot says so itself (the info `faults`)                  its own
    policy_dead, policy_late, recorder_dead, ...         demanded on the board           theirs

A fault named in `stop` ends the run, holding; the others are held through until they are over, for `give_up_s` at most.
What lies within the range but beyond a limit (vla/control/limits.py) is clamped: `clamped` tells what was asked and sent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Observation, Paced
from vla.spec import IMAGE_PREFIX, STATE

QUIET = ("idle", "waiting")
"""Demands that are no faults: nothing is asked for, or the first chunk is being computed."""
RETRY_S = 1.0
"""Seconds between attempts to reach a lost robot again."""


class Stopped(Exception):
    """The run is over because of the fault `reason`; the arm holds."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Safe(VectorEnv):
    """`world` with the safety of this module. Infos also get `asked` (1, A) and `held`."""

    def __init__(
        self,
        world: Paced,
        limits: Limits,
        events: Events,
        board: Board,
        stale_s: float,
        frozen_s: float | None,
        heartbeat_s: float,
        give_up_s: float,
        stop: Collection[str],
    ) -> None:
        self.world, self.limits, self.events, self.board = world, limits, events, board
        self.num_envs, self.vla_spec = 1, world.vla_spec
        self.stale_s, self.frozen_s, self.give_up_s, self.stop = stale_s, frozen_s, give_up_s, set(stop)
        self.active: dict[str, int] = {}  # faults that are going on, and since when
        self._seen: dict[str, dict[str, Any]] = {}  # faults of the last observation
        self._pictures: dict[str, tuple[np.ndarray, int]] = {}  # camera -> last new picture, and since when it is shown
        self._clamping = self._lost = False
        self._retry = 0
        self._last: tuple[Observation, dict[str, Any]] | None = None
        self._heart = Heart(world, events, heartbeat_s)

    def reset(self, *, seed: Any = None, options: Mapping[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Connect, hold and observe."""
        observation, infos = self.world.reset(seed=seed, options=options)
        self.world.arm.hold()
        self._heart.beat()
        self._watch(observation, infos)
        return observation, infos

    def step(self, actions: np.ndarray) -> Any:
        """One control step under the action (1, A), or a hold instead; Stopped where a fault ends the run."""
        asked = np.asarray(actions, np.float64)[0]
        try:
            return self._step(asked)
        except (ConnectionError, OSError) as error:
            self._lost, self._retry = True, time.monotonic_ns()
            self.hold()  # a link that no longer answers may still carry commands
            self._faults({"connection_lost": {"error": repr(error)}})
            return self._without_robot(asked)
        except Stopped:
            raise
        except Exception as error:
            self._faults({"exception": {"error": repr(error)}}, final=True)

    def _step(self, asked: np.ndarray) -> Any:
        if self._lost and not self._reach_again():
            return self._without_robot(asked)
        reasons = {**self.board.take_demands(), **self._seen, **self.limits.refuse(asked)}
        if numbers := self._heart.take_missed():
            reasons["heartbeat"] = numbers
            self.active.setdefault("heartbeat", time.monotonic_ns())  # told by the thread, when it happened
        if self.world.clock.overdue:
            reasons["action_late"] = {"milliseconds": (time.monotonic_ns() - self.world.clock.now) / 1e6}
        if reasons:
            self.limits.still()
            self._heart.beat()
            self._faults(reasons)
            result = self.world.stay()
        else:
            self._faults({})
            sent, clamps = self.limits.clamp(asked, np.asarray(self._measured, np.float64))
            if clamps and not self._clamping:
                self.events.tell("clamped", **{c.entry: {"asked": c.asked, "sent": c.sent} for c in clamps})
            self._clamping = bool(clamps)
            self._heart.beat()
            result = self.world.step(sent[None].astype(np.float32))
        observation, *rest, infos = result
        infos |= {"asked": asked[None].astype(np.float32), "held": bool(reasons)}
        self._watch(observation, infos)
        return observation, *rest, infos

    def hold(self) -> None:
        """Command a hold now, as far as the robot can be reached."""
        with contextlib.suppress(ConnectionError, OSError):
            self.world.arm.hold()

    def fail(self, error: BaseException) -> None:
        """Something outside the world raised: hold, and tell."""
        self.hold()
        self.events.tell("exception", error=repr(error))

    def _faults(self, reasons: Mapping[str, Mapping[str, Any]], final: bool = False) -> None:
        """Tell what began and what is over; raise Stopped where it is not to be held through."""
        now = time.monotonic_ns()
        reasons = {name: numbers for name, numbers in reasons.items() if name not in QUIET}
        for name in [name for name in self.active if name not in reasons]:
            self.events.tell("over", fault=name, seconds=(now - self.active.pop(name)) / 1e9)
        for name, numbers in reasons.items():
            if name not in self.active:
                self.active[name] = now
                self.events.tell(name, **numbers)
        for name in reasons:
            lasted = (now - self.active[name]) / 1e9
            if final or name in self.stop or lasted > self.give_up_s:
                self.hold()
                self.events.tell("stopped", fault=name, seconds=lasted)
                raise Stopped(name)

    def _watch(self, observation: Observation, infos: Mapping[str, Any]) -> None:
        """Look for faults in what was observed; they count in the next step."""
        now = time.monotonic_ns()
        self._last, self._measured = (observation, dict(infos)), observation[STATE][0]
        self._seen = {**self.limits.watch(self._measured, infos["time_ns"]), **infos.get("faults", {})}
        if (age := (now - infos["time_ns"]) / 1e9) > self.stale_s:
            self._seen["stale_state"] = {"age_s": age}
        for camera, taken in infos["camera_times_ns"].items():
            if (age := (now - taken) / 1e9) > self.stale_s:
                self._seen["stale_camera"] = {"camera": camera, "age_s": age}
            picture = observation[IMAGE_PREFIX + camera][0]
            last, since = self._pictures.get(camera, (None, now))
            if last is None or not np.array_equal(picture, last):
                self._pictures[camera] = (picture, now)
            elif self.frozen_s is not None and (now - since) / 1e9 > self.frozen_s:
                self._seen["frozen_camera"] = {"camera": camera, "seconds": (now - since) / 1e9}

    def _reach_again(self) -> bool:
        """Whether a lost robot answers again; tried once in RETRY_S."""
        if time.monotonic_ns() - self._retry < RETRY_S * 1e9:
            return False
        self._retry = time.monotonic_ns()
        try:
            self.reset()
        except (ConnectionError, OSError):
            return False
        self._lost = False
        return True

    def _without_robot(self, asked: np.ndarray) -> Any:
        """A step without a robot: its own watchdog holds it. The last observation is repeated."""
        self._faults({"connection_lost": {}})
        self._heart.beat()
        self.world.idle()
        assert self._last is not None
        observation, infos = self._last
        no, row = np.zeros(1, bool), asked[None].astype(np.float32)
        infos = {**infos, "sent": infos.get("sent", np.zeros_like(row)), "asked": row, "held": True, "lost": True}
        return observation, np.zeros(1), no, no.copy(), infos

    def close_extras(self, **kwargs: Any) -> None:
        """Hold, and let go of the robot."""
        self._heart.stop()
        self.hold()
        self.world.close()


class Heart:
    """A thread that holds the arm when the loop has not sent anything for `limit_s`."""

    def __init__(self, world: Paced, events: Events, limit_s: float) -> None:
        self._world, self._events, self._limit = world, events, limit_s
        self._beat: int | None = None
        self._missed: dict[str, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        self._beat = time.monotonic_ns()

    def take_missed(self) -> dict[str, Any]:
        """Numbers of a hold since the last call, or nothing."""
        missed, self._missed = self._missed, {}
        return missed

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        held = None
        while not self._ended.wait(self._limit / 4):
            beat = self._beat
            if beat is None or beat == held or time.monotonic_ns() - beat < self._limit * 1e9:
                continue
            held = beat
            self._missed = {"seconds": (time.monotonic_ns() - beat) / 1e9}
            self._events.tell("heartbeat", **self._missed)
            with contextlib.suppress(Exception):  # a robot that is gone holds by itself, and the loop tells
                self._world.arm.hold()
