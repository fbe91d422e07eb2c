"""A LeRobot `Robot` as a world of one. The robot's config maps its features to a Spec:

    robot: {type: playtable, ...}          the type in LeRobot's registry, and that robot's own settings
    plugins: [envs.robot.simulated]        modules that register it
    cameras: {static: front}               the Spec's camera -> the robot's feature
    state:
      - {feature: joint_1.pos, name: joint_1, unit: rad, scale: 0.017453}     value = scale * reading + offset
    action:
      - {feature: joint_1.pos, name: joint_1, unit: rad, scale: 0.017453, low: -2.9, high: 2.9, hold: joint_1}
      - {feature: dx.vel, name: delta_x, unit: "1", low: -1, high: 1, hold: 0}

`hold` says what this entry is while the arm holds: a number, or the state entry whose measured value is taken. It is taken
once, when the hold begins (a servo that sags below its goal would else sink step by step), as the median of the last readings,
so that a single false one is never gone to.

This module neither waits nor limits anything: time and safety wrap it (vla/control).
"""

from __future__ import annotations

import contextlib
import importlib
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla.spec import STATE, Entry, Spec, UserError, image_key

ATTEMPTS = 3
"""To connect: LeRobot asks each motor for a hundred things then, and one answer that is lost fails all."""
READINGS = 3
"""So many readings have a say in where a hold is."""


@dataclass(frozen=True)
class Feature:
    """How one number of the robot becomes an entry of the Spec: see the module."""

    feature: str
    name: str
    unit: str
    scale: float = 1.0
    offset: float = 0.0
    low: float | None = None
    high: float | None = None
    hold: float | str | None = None

    def entry(self) -> Entry:
        return Entry(self.name, self.unit, self.low, self.high)


class RobotWorld(VectorEnv):
    """One robot. Observations and actions as `vla_spec` says; the mapping as the module says.

    Nothing is sent to the robot before `reset`, which connects it, reads it, and does not move it. Infos: `time_ns`, when the
    joints were read, `camera_times_ns`, when each picture was taken (by the robot's `stamps` or its camera's
    `latest_timestamp`; without either, when it was handed over), both on the monotonic clock; after a command `sent` (1, A),
    what the robot says it was sent. A robot with a method `hold` is held by it; any other is sent its `hold` action.
    Calls from several threads take turns. Whatever the robot raises goes through, but for the first connection: UserError.
    """

    def __init__(
        self,
        robot: Mapping[str, Any],
        state: Sequence[Mapping[str, Any]],
        action: Sequence[Mapping[str, Any]],
        action_kind: str,
        control_hz: float,
        cameras: Mapping[str, str] | None = None,
        frame: str = "",
        plugins: Sequence[str] = (),
    ) -> None:
        self.robot = make_robot(robot, plugins)
        self.num_envs = 1
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": [], "render_fps": control_hz}
        self._cameras = dict(cameras or {})
        self._state, self._action = (_features(kind, rows) for kind, rows in (("state", state), ("action", action)))
        self._check()
        sizes = {name: self.robot.observation_features[feature] for name, feature in self._cameras.items()}
        self.vla_spec = Spec(
            cameras={name: (int(h), int(w)) for name, (h, w, _) in sizes.items()},
            state=tuple(f.entry() for f in self._state),
            action=tuple(f.entry() for f in self._action),
            action_kind=action_kind,
            control_hz=float(control_hz),
            frame=frame,
        )
        box = gymnasium.spaces.Box
        spaces: dict[str, gymnasium.Space] = {image_key(c): box(0, 255, s, np.uint8) for c, s in sizes.items()}
        spaces[STATE] = box(-np.inf, np.inf, (len(self._state),), np.float32)
        self.single_observation_space = gymnasium.spaces.Dict(spaces)
        low, high = (np.array([getattr(f, k) for f in self._action], np.float32) for k in ("low", "high"))
        self.single_action_space = box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, 1)
        self.action_space = batch_space(self.single_action_space, 1)
        self._turn = threading.Lock()
        self._measured: deque[np.ndarray] = deque(maxlen=READINGS)
        self._held: np.ndarray | None = None  # the action of a hold that goes on
        self._met = False  # whether it was connected before

    def _check(self) -> None:
        """UserError where the mapping names what the robot does not have."""
        seen, sent = self.robot.observation_features, self.robot.action_features
        for what, names, features in (
            ("camera", self._cameras.values(), {k: v for k, v in seen.items() if isinstance(v, tuple)}),
            ("state", [f.feature for f in self._state], {k: v for k, v in seen.items() if not isinstance(v, tuple)}),
            ("action", [f.feature for f in self._action], sent),
        ):
            for name in names:
                if name not in features:
                    raise UserError(
                        f"the mapping has the {what} feature {name!r} but robot {self.robot.name!r} has {sorted(features)}: "
                        "correct it in the robot's config."
                    )
        if missing := sorted(set(sent) - {f.feature for f in self._action}):
            raise UserError(f"robot {self.robot.name!r} takes {missing[0]!r} but no action has that feature: add it.")
        for f in self._action:
            if f.low is None or f.high is None or f.hold is None:
                raise UserError(f"action {f.name!r} lacks low, high or hold: add them in the robot's config.")
            if isinstance(f.hold, str) and f.hold not in [s.name for s in self._state]:
                raise UserError(f"action {f.name!r} holds at {f.hold!r}, which is no state entry: name one, or give a number.")

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Connect if need be, and observe; the arm stays where it is.

        UserError if it cannot be connected the first time or is not calibrated (nobody is asked to do it here and now);
        ConnectionError if it cannot be reached again.
        """
        with self._turn:
            if not self.robot.is_connected:
                self._connect()
            self._measured.clear()
            self._held = None
        for _ in range(READINGS - 1):
            self.sense()
        return self.sense()

    def _connect(self) -> None:
        name = self.robot.name
        for attempt in range(ATTEMPTS):
            try:
                self.robot.connect(calibrate=False)
                calibrated = self.robot.is_calibrated
                break
            except Exception as error:  # drivers raise all sorts of things
                self._let_go()  # half connected
                if attempt < ATTEMPTS - 1:
                    continue
                said = " ".join(str(error).split())
                if self._met:
                    raise ConnectionError(f"robot {name!r} cannot be reached again: {said}") from error
                raise UserError(
                    f"robot {name!r} cannot be connected ({said}): check its settings, power and cables."
                ) from error
        if calibrated is False:
            self._let_go()
            raise UserError(
                f"robot {name!r} has no calibration in {self.robot.calibration_fpath}, or another one in its motors: run "
                "lerobot-calibrate with the same robot.type, robot.id and robot.port."
            )
        self._met = True

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self.robot.disconnect()

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Send one action (1, A) and observe, without waiting."""
        sent = self.send(actions)
        observation, infos = self.sense()
        no = np.zeros(1, bool)
        return observation, np.zeros(1), no, no.copy(), {**infos, "sent": sent}

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Send one action (1, A) in the Spec's units; gives what the robot says it was sent, (1, A) float32."""
        asked = self._asked(np.asarray(actions, np.float64)[0])
        with self._line():
            self._held = None
            sent = self.robot.send_action(asked)
        return np.array([[f.scale * sent[f.feature] + f.offset for f in self._action]], np.float32)

    def _asked(self, row: np.ndarray) -> dict[str, float]:
        return {f.feature: float((x - f.offset) / f.scale) for f, x in zip(self._action, row, strict=True)}

    def hold(self) -> np.ndarray:
        """Make the arm stop and stay; gives the action (1, A) that says so. ConnectionError if it was never read."""
        with self._line():
            if (row := self._held) is None:
                if not self._measured:
                    raise ConnectionError("The arm was not read yet, so nobody knows where to hold it.")
                here = np.median(self._measured, axis=0)
                places = {f.name: k for k, f in enumerate(self._state)}
                row = np.array([here[places[f.hold]] if isinstance(f.hold, str) else f.hold for f in self._action], np.float64)
            if hasattr(self.robot, "hold"):
                self.robot.hold()  # type: ignore[attr-defined]
            else:
                self.robot.send_action(self._asked(row))
            self._held = row
        return row[None].astype(np.float32)

    def sense(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and infos of now."""
        with self._line():
            self._forget_late_answers()
            reading = self.robot.get_observation()
            now = time.monotonic_ns()
            stamps = self._stamps()
        pictures = {image_key(c): np.asarray(reading[f], np.uint8)[None] for c, f in self._cameras.items()}
        values = np.array([f.scale * float(reading[f.feature]) + f.offset for f in self._state])
        if np.isfinite(values).all():
            self._measured.append(values)
        observation = {**pictures, STATE: values.astype(np.float32)[None]}
        times = {c: stamps.get(f, now) for c, f in self._cameras.items()}
        faults = self.robot.faults() if hasattr(self.robot, "faults") else {}  # type: ignore[attr-defined]
        return observation, {"time_ns": stamps.get("", now), "camera_times_ns": times, "faults": faults}

    @contextlib.contextmanager
    def _line(self) -> Iterator[None]:
        """One caller at a time; a serial port that was pulled out is a lost connection."""
        with self._turn:
            try:
                yield
            except termios.error as error:
                raise ConnectionError(f"the robot's port failed: {error}") from error

    def _forget_late_answers(self) -> None:
        """What lies in a serial bus's buffer answers an earlier question. LeRobot's SDKs would take it for the next answer, and
        so lag behind from then on; and a port that failed while it was used would count as used for ever."""
        port = getattr(getattr(self.robot, "bus", None), "port_handler", None)
        if port is not None and port.ser is not None:
            port.ser.reset_input_buffer()
            port.is_using = False

    def _stamps(self) -> dict[str, int]:
        """When the last observation was taken, ns: camera feature -> time, and "" for the joints, as far as it is known."""
        if hasattr(self.robot, "stamps"):
            return self.robot.stamps()  # type: ignore[attr-defined]
        cameras = getattr(self.robot, "cameras", {})
        seconds = {f: getattr(cameras.get(f), "latest_timestamp", None) for f in self._cameras.values()}
        return {f: int(s * 1e9) for f, s in seconds.items() if s is not None}  # of perf_counter, which is the same clock

    def close_extras(self, **kwargs: Any) -> None:
        """Hold and disconnect, as far as the robot answers. Whether its motors keep their torque then is its own setting."""
        if self.robot.is_connected:
            with contextlib.suppress(OSError):
                self.hold()
            self._let_go()


def make_robot(settings: Mapping[str, Any], plugins: Sequence[str] = ()) -> Any:
    """The robot of LeRobot's registry that `settings` describe; UserError for an unknown type or setting."""
    import draccus
    from lerobot.robots import RobotConfig, make_robot_from_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            raise UserError(f"plugin {plugin!r} cannot be imported ({error}): install it or correct its name.") from error
    known = RobotConfig.get_known_choices()
    if settings.get("type") not in known:
        raise UserError(
            f"robot type {settings.get('type')!r} is unknown: use one of {sorted(known)}, or name the module that registers it "
            "in plugins."
        )
    try:
        return make_robot_from_config(draccus.decode(RobotConfig, dict(settings)))
    except ImportError as error:
        said = " ".join(str(error).split())
        raise UserError(f"robot {settings['type']!r} needs a package that is not installed ({said}): install it.") from error
    except (draccus.utils.DecodingError, ValueError) as error:
        raise UserError(f"the settings of robot {settings['type']!r} do not fit it ({error}): correct them.") from error


def _features(kind: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Feature, ...]:
    try:
        return tuple(Feature(**row) for row in rows)
    except TypeError as error:
        raise UserError(f"an entry of the robot's {kind} is not complete ({error}): see envs/robot/world.py.") from error
