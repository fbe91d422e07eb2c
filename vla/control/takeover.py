"""A person takes over: a LeRobot teleoperator commands the arm in the policy's place, through the same limits and safety.

    teleop:                                              one file of conf/teleop
      plugins: [lerobot.teleoperators.so_leader]         modules that register it
      device: {type: so101_leader, port: ...}            its type in LeRobot's registry, and its own settings
      action:                                            every action entry of the robot, and where its value comes from
        shoulder_pan: {feature: shoulder_pan.pos, scale: 0.0175}        scale * reading + offset
        gripper: {feature: gripper, offset: -1, keep: 1, state: gripper_action}    the state entry while the reading is `keep`
        delta_yaw: {}                                                   offset, which is 0

`t` and Enter takes over and gives back; a teleoperator that tells itself whether a person drives (LeRobot's
`get_teleop_events`) needs no `t`. The device is read in a thread of its own: it is asked in every cycle, and what it said by
the next one counts.

    loop     k: ask          k+1: command what was said, ask          k+2: ...
    device      |--- read -->|                      |--- read -->|

While a person drives, the instruction's time stands still, the policy is not asked, and the recording has 1 in control/person.
When the policy gets the arm back, it begins the instruction anew: what it planned and remembered is of before.

    fault              what it is                                          numbers in the log
    teleop_lost        reading the device failed while a person drives     the error
    teleop_late        it has not answered for `LATE_S`                    seconds
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.control.desk import Desk
from vla.control.events import Board, Events
from vla.policy import Memory, Observation
from vla.spec import STATE, Spec, UserError

KEY = "t"
LATE_S = 0.25
ATTEMPTS = 3
"""To connect: one answer of a servo that is lost fails all."""
CLOSE_S = 1.0
"""Seconds that a device which hangs is waited for at the end."""


@dataclass(frozen=True)
class Axis:
    """Where one entry of the action comes from: see the module."""

    feature: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    keep: float | None = None
    state: str | None = None


class Takeover:
    """`policy`, until a person takes over; a `Policy` for the rollout loop, asked in every control step.

    teleop: the config of the module. spec: the robot's. Raises UserError for a device that is unknown, cannot be connected or
    is not calibrated, and for a mapping that does not fit it or the robot.
    """

    def __init__(self, policy: Any, teleop: Mapping[str, Any], spec: Spec, desk: Desk, board: Board, events: Events) -> None:
        self.policy, self.spec, self.history = policy, policy.spec, policy.history
        self._desk, self._board, self._events = desk, board, events
        self._axes = _axes(teleop["action"], spec)
        self._places = {entry.name: k for k, entry in enumerate(spec.state)}
        device = make_teleoperator(teleop["device"], teleop.get("plugins", ()))
        _require(device, [a.feature for a in self._axes if a.feature])
        _connect(device)
        self._hand = Hand(device)
        self._wanted = False  # by the key
        desk.commands[KEY] = self._toggle

    def begin(self, seeds: Sequence[int]) -> Memory:
        return {"policy": self.policy.begin(seeds), "seed": np.array(seeds)}

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """The policy's chunk, or the one action of the person who drives; where there is none the board demands a hold."""
        said, intervenes, error, age_s = self._hand.exchange()
        drives = self._wanted or intervenes
        if drives != self._desk.taken:
            self._desk.taken = drives
            self._events.tell("taken_over" if drives else "given_back")
            if not drives:
                memory = self.begin(memory["seed"].tolist())
        if not drives:
            chunk, inner = self.policy.act(observation, memory["policy"])
            return chunk, {**memory, "policy": inner}
        self._board.note(person=1)
        action = np.zeros(len(self._axes), np.float32)
        if error is not None:
            self._board.demand("teleop_lost", error=error)
        elif said is None or age_s > LATE_S:
            self._board.demand("teleop_late", seconds=age_s)
        else:
            asked = np.array([self._value(axis, said, observation[STATE][0]) for axis in self._axes], np.float32)
            if np.isfinite(asked).all():
                action = asked
            else:
                names = [entry.name for entry, x in zip(self.spec.action, asked, strict=True) if not np.isfinite(x)]
                self._board.demand("action_not_finite", entries=names)
        return action[None, None], memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return {**memory, "policy": self.policy.remember(observation, memory["policy"])}

    def close(self) -> None:
        """Let go of the device; the policy is its owner's to close."""
        self._hand.close()

    def _toggle(self) -> None:
        self._wanted = not self._wanted

    def _value(self, axis: Axis, said: Mapping[str, float], state: np.ndarray) -> float:
        if axis.state is not None and (axis.feature is None or said[axis.feature] == axis.keep):
            return float(state[self._places[axis.state]])
        return axis.offset + (axis.scale * said[axis.feature] if axis.feature else 0.0)


class Hand:
    """A teleoperator's device and the thread that reads it, so that one that is slow or hangs keeps nobody waiting."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._port = getattr(getattr(device, "bus", None), "port_handler", None)
        self._asked, self._ended = threading.Event(), False
        self._said: dict[str, float] | None = None
        self._intervenes, self._error = False, None
        self._since = time.monotonic_ns()  # of the last answer
        self._thread = threading.Thread(target=self._run, name="teleoperator", daemon=True)
        self._thread.start()

    def exchange(self) -> tuple[dict[str, float] | None, bool, str | None, float]:
        """What was said last, whether a person drives, what went wrong with the last reading, and its age in seconds; ask."""
        answer = self._said, self._intervenes, self._error, (time.monotonic_ns() - self._since) / 1e9
        self._asked.set()
        return answer

    def close(self) -> None:
        self._ended = True
        self._asked.set()
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            with contextlib.suppress(Exception):  # it may be gone; nothing depends on it any more
                self._device.disconnect()

    def _run(self) -> None:
        from lerobot.teleoperators.utils import TeleopEvents

        tells = getattr(self._device, "get_teleop_events", None)
        while self._asked.wait() and not self._ended:
            self._asked.clear()
            try:
                if self._port is not None:  # a late answer to an earlier question is none to this: see envs/robot/world.py
                    self._port.ser.reset_input_buffer()
                said = {name: float(value) for name, value in self._device.get_action().items()}
                told = tells() if tells else {}
            except Exception as error:  # whether a person drives is then as it was
                self._error = repr(error)
            else:
                self._said, self._error = said, None
                self._intervenes = bool(told.get(TeleopEvents.IS_INTERVENTION, False))
            self._since = time.monotonic_ns()


def make_teleoperator(settings: Mapping[str, Any], plugins: Sequence[str] = ()) -> Any:
    """The teleoperator of LeRobot's registry that `settings` describe; UserError for an unknown type or setting."""
    import draccus
    from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            raise UserError(f"plugin {plugin!r} cannot be imported ({error}): install it or correct its name.") from error
    known, kind = TeleoperatorConfig.get_known_choices(), settings.get("type")
    if kind not in known:
        raise UserError(
            f"teleoperator type {kind!r} is unknown: use one of {sorted(known)}, or name the module that registers it in "
            "plugins."
        )
    try:
        return make_teleoperator_from_config(draccus.decode(TeleoperatorConfig, dict(settings)))
    except (draccus.utils.DecodingError, ValueError) as error:
        raise UserError(f"the settings of teleoperator {kind!r} do not fit it ({error}): correct them.") from error
    except ImportError as error:
        said = " ".join(str(error).split())
        raise UserError(f"teleoperator {kind!r} needs a package that is not installed ({said}): install it.") from error


def _axes(rows: Mapping[str, Mapping[str, Any]], spec: Spec) -> list[Axis]:
    names = [entry.name for entry in spec.action]
    if different := sorted(set(rows) ^ set(names)):
        raise UserError(f"the teleop's action and the robot's differ in {different[0]!r}: give it each of {names}.")
    try:
        axes = [Axis(**rows[name]) for name in names]
    except TypeError as error:
        raise UserError(f"an entry of the teleop's action is not right ({error}): see vla/control/takeover.py.") from error
    states = [entry.name for entry in spec.state]
    for axis in axes:
        if axis.state is not None and axis.state not in states:
            raise UserError(f"the teleop's action names the state {axis.state!r}, the robot has {states}: use one of them.")
    return axes


def _require(device: Any, features: Sequence[str]) -> None:
    offered = device.action_features
    offered = offered.get("names", offered)  # keyboards and gamepads have them one level down
    for name in features:
        if name not in offered:
            raise UserError(f"the teleop's action has the feature {name!r}, {device.name!r} has {sorted(offered)}: correct it.")


def _connect(device: Any) -> None:
    """Nobody is asked to calibrate here and now. Some devices take no argument to connect."""
    quiet = {"calibrate": False} if "calibrate" in inspect.signature(device.connect).parameters else {}
    for attempt in range(ATTEMPTS):
        try:
            device.connect(**quiet)
            calibrated = device.is_calibrated
            break
        except Exception as error:  # drivers raise all sorts of things
            with contextlib.suppress(Exception):
                device.disconnect()  # half connected
            if attempt == ATTEMPTS - 1:
                said = " ".join(str(error).split())
                raise UserError(
                    f"teleoperator {device.name!r} cannot be connected ({said}): check its settings and cables."
                ) from error
    if calibrated is False:
        device.disconnect()
        raise UserError(
            f"teleoperator {device.name!r} has no calibration in {device.calibration_fpath}, or another one in its motors: run "
            "lerobot-calibrate with the same teleop.type, teleop.id and teleop.port."
        )
