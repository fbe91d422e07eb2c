"""A LeRobot `Robot` as a world of one. The robot's config maps its features to a Spec:

    robot: {type: playtable, ...}          the type in LeRobot's registry, and that robot's own settings
    plugins: [envs.robot.simulated]        modules that register it
    cameras: {static: front}               the Spec's camera -> the robot's feature
    state:
      - {feature: joint_1.pos, name: joint_1, unit: rad, scale: 0.017453}     value = scale * reading + offset
    action:
      - {feature: joint_1.pos, name: joint_1, unit: rad, scale: 0.017453, low: -2.9, high: 2.9, hold: joint_1}
      - {feature: dx.vel, name: delta_x, unit: "1", low: -1, high: 1, hold: 0}

`hold` says what this entry is while the arm holds: a number, or the state entry whose measured value is taken.

This module neither waits nor limits anything: time and safety wrap it (vla/control).
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from vla.spec import STATE, Entry, Spec, UserError, image_key


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
    joints were read, `camera_times_ns`, when each picture was taken (where the robot has no `stamps`, when it was handed over),
    both on the monotonic clock; after a command `sent` (1, A), what the robot says it was sent.
    A robot with a method `hold` is held by it; any other is sent its `hold` action.
    Calls from several threads take turns. Whatever the robot raises goes through.
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
        self._measured = np.zeros(len(self._state))

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
        """Connect if need be, and observe; the arm stays where it is."""
        with self._turn:
            if not self.robot.is_connected:
                self.robot.connect()
        return self.sense()

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Send one action (1, A) and observe, without waiting."""
        sent = self.send(actions)
        observation, infos = self.sense()
        no = np.zeros(1, bool)
        return observation, np.zeros(1), no, no.copy(), {**infos, "sent": sent}

    def send(self, actions: np.ndarray) -> np.ndarray:
        """Send one action (1, A) in the Spec's units; gives what the robot says it was sent, (1, A) float32."""
        row = np.asarray(actions, np.float64)[0]
        asked = {f.feature: float((x - f.offset) / f.scale) for f, x in zip(self._action, row, strict=True)}
        with self._turn:
            sent = self.robot.send_action(asked)
        return np.array([[f.scale * sent[f.feature] + f.offset for f in self._action]], np.float32)

    def hold(self) -> np.ndarray:
        """Make the arm stop and stay; gives the action (1, A) that says so."""
        places = {f.name: k for k, f in enumerate(self._state)}
        row = [self._measured[places[f.hold]] if isinstance(f.hold, str) else f.hold for f in self._action]
        if not hasattr(self.robot, "hold"):
            return self.send(np.array([row]))
        with self._turn:
            self.robot.hold()  # type: ignore[attr-defined]
        return np.array([row], np.float32)

    def sense(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Observation and infos of now."""
        with self._turn:
            reading = self.robot.get_observation()
            now = time.monotonic_ns()
            stamps = self.robot.stamps() if hasattr(self.robot, "stamps") else {}  # type: ignore[attr-defined]
        pictures = {image_key(c): np.asarray(reading[f], np.uint8)[None] for c, f in self._cameras.items()}
        values = np.array([f.scale * float(reading[f.feature]) + f.offset for f in self._state])
        if np.isfinite(values).all():
            self._measured = values
        observation = {**pictures, STATE: values.astype(np.float32)[None]}
        times = {c: stamps.get(f, now) for c, f in self._cameras.items()}
        return observation, {"time_ns": stamps.get("", now), "camera_times_ns": times}

    def close_extras(self, **kwargs: Any) -> None:
        """Hold and disconnect. Whether the motors keep their torque then is the robot's own setting."""
        if self.robot.is_connected:
            self.hold()
            self.robot.disconnect()


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
    except (draccus.utils.DecodingError, ValueError) as error:
        raise UserError(f"the settings of robot {settings['type']!r} do not fit it ({error}): correct them.") from error


def _features(kind: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Feature, ...]:
    try:
        return tuple(Feature(**row) for row in rows)
    except TypeError as error:
        raise UserError(f"an entry of the robot's {kind} is not complete ({error}): see envs/robot/world.py.") from error
