"""The playtable: N CALVIN-like worlds in one process behind `gymnasium.vector.VectorEnv`.

A control step is 1/30 s. Nothing here knows about tasks, and nothing ends by itself: rewards are 0 and episodes have no end,
as in the original; tasks are asked of `states()` with `envs.playtable.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from mujoco.batch import Batch

from envs.playtable import dynamics, render
from envs.playtable import layout as L
from envs.playtable import scene as S
from envs.playtable.kinematics import TCP
from envs.playtable.state import Block, State
from vla.spec import ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Entry, Spec, UserError, image_key

CALVIN_CAMERAS = {"static": (200, 200), "wrist": (84, 84)}
STATE_PARTS = ("time", "qpos", "qvel", "qacc_warmstart", "ctrl", "userdata")
SCENE = "observation.scene"
"""Privileged like the environment state: which of layout.SCENES a world is."""
BLOCK_BITS = tuple(S.PARTS.index(f"block_{color}") for color in L.BLOCK_NAMES)
ROBOT_BIT = S.PARTS.index("robot")

_POSE = (("x", "m"), ("y", "m"), ("z", "m"), ("roll", "rad"), ("pitch", "rad"), ("yaw", "rad"))
STATE_ENTRIES = (
    *(Entry(f"tcp_{name}", unit) for name, unit in _POSE),
    Entry("gripper_width", "m"),
    *(Entry(f"joint_{i + 1}", "rad") for i in range(7)),
    Entry("gripper_action", "1"),
)
ACTION_ENTRIES = (*(Entry(f"delta_{name}", "1", -1.0, 1.0) for name, _ in _POSE), Entry("gripper", "1", -1.0, 1.0))
SCENE_ENTRIES = (
    *(Entry(name, "m") for name in ("slider", "drawer", "button", "switch")),
    *(Entry(name, "1") for name in ("lightbulb", "led")),
    *(Entry(f"block{i}_{name}", unit) for i in range(3) for name, unit in _POSE),
)
FRAME = (
    "world frame, z up; pose deltas in units of 0.02 m and 0.05 rad, added to extrinsic xyz Euler angles; "
    f"tool centre point {TCP} m along the hand; gripper +1 open, -1 closed"
)


class Playtable(VectorEnv):
    """N worlds. `scenes`: one letter per world. Observations and actions as `vla_spec` says.

    cameras: name -> (height, width), out of "static" and "wrist"; empty renders nothing. renderer: "raster" (software, the
    same pixels everywhere) or "gl". randomize: chance that a reset draws a new look for a
    world instead of the scene's own. leash: how far the target pose may
    lead the hand (metres, radians); (inf, inf) is the original's unbounded wind-up. threads: worlds stepped and drawn at a
    time; results do not depend on it.
    """

    def __init__(
        self,
        scenes: Sequence[str],
        cameras: Mapping[str, tuple[int, int]],
        renderer: str = "raster",
        randomize: float = 0.0,
        leash: tuple[float, float] = (0.06, 0.3),
        supersample: int = 1,
        threads: int = 1,
    ) -> None:
        _check_options(cameras, randomize, leash, supersample, threads)
        self.num_envs = len(scenes)
        self.scenes = tuple(scenes)
        self.layouts = tuple(L.layout_of(scene) for scene in scenes)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": [], "render_fps": S.CONTROL_HZ}
        self.vla_spec = Spec(
            cameras={name: (int(h), int(w)) for name, (h, w) in cameras.items()},
            state=STATE_ENTRIES,
            action=ACTION_ENTRIES,
            environment_state=SCENE_ENTRIES,
            action_kind="relative_pose",
            control_hz=float(S.CONTROL_HZ),
            frame=FRAME,
            projections={name: S.static_projection(size) for name, size in cameras.items() if name == "static"},
            hand_projections={name: S.wrist_projection(size) for name, size in cameras.items() if name == "wrist"},
        )
        self._make_spaces()
        self._painter = render.Painter(self.scenes, self.vla_spec.cameras, renderer, supersample, threads)
        self._randomize = randomize
        self._leash = np.asarray(leash, dtype=np.float64)
        self._base = np.asarray(L.ROBOT_BASE, dtype=np.float64)
        self._rest = np.asarray(L.HOME_JOINTS, dtype=np.float64)
        self._orders = np.array([[L.BLOCK_NAMES.index(c) for c in s.block_order] for s in self.layouts])
        self._scene_index = np.array([L.SCENES.index(scene) for scene in scenes])
        self._part_of_geom = S.part_of_geom(scenes[0])
        models = [S.build(scene) for scene in scenes]
        self._batch = Batch(models[0], self.num_envs, threads, persistent=True)
        if len(set(scenes)) > 1:
            self._batch.set_models(models)
        self._scratch = mujoco.MjData(models[0])
        self._parts = {name: self._batch.bind(name) for name in STATE_PARTS}
        self._qpos, self._qvel = self._parts["qpos"], self._parts["qvel"]
        self._ctrl, self._userdata = self._parts["ctrl"], self._parts["userdata"]
        self._poses = [self._batch.bind(name) for name in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")]
        self._looks = np.zeros(self.num_envs, dtype=np.int64)
        self._seen = np.ones(self.num_envs, dtype=bool)
        self._rngs = [np.random.default_rng([0, i]) for i in range(self.num_envs)]
        self.robot_obs = np.zeros((self.num_envs, 15))
        self.scene_obs = np.zeros((self.num_envs, 24))

    def _make_spaces(self) -> None:
        box, spec = gymnasium.spaces.Box, self.vla_spec
        spaces: dict[str, gymnasium.Space] = {
            image_key(name): box(0, 255, (*size, 3), np.uint8) for name, size in spec.cameras.items()
        }
        spaces[STATE] = box(-np.inf, np.inf, (15,), np.float32)
        spaces[ENVIRONMENT_STATE] = box(-np.inf, np.inf, (24,), np.float32)
        spaces[SCENE] = gymnasium.spaces.Discrete(len(L.SCENES))
        self.single_observation_space = gymnasium.spaces.Dict(spaces)
        self.single_action_space = box(-1, 1, (7,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Put worlds into a start state; the past leaves no trace.

        options: `robot_obs` (N, 15) and `scene_obs` (N, 24), where missing the home pose and CALVIN's random blocks;
        `reset_mask` (N,) restricts to some worlds; `look` (N,) integers choose the look (0: the scene's own).
        """
        options = dict(options or {})
        unknown = set(options) - {"robot_obs", "scene_obs", "reset_mask", "look"}
        if unknown:
            raise UserError(f"unknown reset option {sorted(unknown)[0]!r}: use robot_obs, scene_obs, reset_mask or look.")
        mask = self._mask("reset_mask", options.get("reset_mask", np.ones(self.num_envs, bool)))
        rows = np.flatnonzero(mask)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise UserError(f"reset has {len(seeds)} seeds: give one number, or one for each of the {self.num_envs} worlds.")
        for n in rows:
            if seeds is not None and seeds[n] is not None:
                self._rngs[n] = np.random.default_rng(int(seeds[n]))
        robot = self._option(options, "robot_obs", 15)
        scene = self._option(options, "scene_obs", 24)
        if robot is None:
            robot = np.tile(L.HOME_ROBOT_OBS, (self.num_envs, 1))
        if scene is None:
            scene = np.zeros((self.num_envs, 24))
            for n in rows:
                scene[n] = random_blocks(self._rngs[n], self.layouts[n])
        if "look" in options:
            looks = np.asarray(options["look"])
            if looks.shape != (self.num_envs,) or not np.array_equal(looks, np.clip(np.floor(looks), 0, 2**31 - 1)):
                raise UserError(f"reset option look is {options['look']}: give {self.num_envs} whole numbers from 0 on.")
            self._looks[rows] = looks[rows]
        else:
            for n in rows:
                drawn = self._randomize and self._rngs[n].random() < self._randomize
                self._looks[n] = self._rngs[n].integers(1, 2**31) if drawn else 0
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE)
        dynamics.place(robot[rows], scene[rows], self._base, self._orders, rows, self._qpos, self._userdata, self._ctrl)
        self._batch.forward(rows, stage=mujoco.mjtStage.mjSTAGE_VEL)
        return self._observe(mask & self._seen), self._info()

    def _mask(self, name: str, values: Any) -> np.ndarray:
        mask = np.array(values)
        if mask.shape != (self.num_envs,) or mask.dtype.kind not in "biuf":
            raise UserError(f"{name} has shape {mask.shape}: give one True or False for each world, ({self.num_envs},).")
        return mask.astype(bool)

    def _option(self, options: Mapping[str, Any], name: str, length: int) -> np.ndarray | None:
        if name not in options:
            return None
        value = np.asarray(options[name], dtype=np.float64)
        if value.shape != (self.num_envs, length):
            raise UserError(
                f"reset option {name} has shape {value.shape}: give one row for each world, ({self.num_envs}, {length})."
            )
        if not np.isfinite(value).all():
            raise UserError(
                f"reset option {name} is not finite at {np.argwhere(~np.isfinite(value))[0].tolist()}: give real numbers."
            )
        return value

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One control step under relative actions (N, 7), float, not clipped (as in the original); UserError if not finite.

        infos: `robot_obs`, `scene_obs`, and `diverged` (N,): where physics blew up, and the world stood still instead.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, 7):
            raise UserError(f"actions have shape {actions.shape}: give ({self.num_envs}, 7).")
        if not np.isfinite(actions).all():
            world, entry = np.argwhere(~np.isfinite(actions))[0]
            raise UserError(
                f"action of world {world} is {actions[world, entry]} at {ACTION_ENTRIES[entry].name}: give finite numbers."
            )
        dynamics.command(actions, self._qpos, self._userdata, self._ctrl, self._base, self._rest, self._leash)
        before = {name: part.copy() for name, part in self._parts.items()}
        self._batch.step(nstep=S.SUBSTEPS, stage=mujoco.mjtStage.mjSTAGE_VEL)
        diverged = self._stop_diverged(before)
        dynamics.latch(self._qpos, self._userdata)
        nothing = np.zeros(self.num_envs, dtype=bool)
        observation = self._observe(self._seen)
        info = {**self._info(), "diverged": diverged}
        return observation, np.zeros(self.num_envs), nothing, nothing.copy(), info

    def holding(self) -> np.ndarray:
        """Actions (N, 7), float32, under which hands stay where they were told to be, fingers as they are."""
        actions = np.zeros((self.num_envs, 7), np.float32)
        actions[:, 6] = self.robot_obs[:, 14]
        return actions

    def _stop_diverged(self, before: Mapping[str, np.ndarray]) -> np.ndarray:
        """Worlds whose physics blew up, (N,). MuJoCo resets them, which wipes the gripper command, 1 or -1 otherwise; here
        they stand still instead, where they were before the step."""
        diverged = self._userdata[:, dynamics.GRIPPER] == 0
        if diverged.any():
            for name, part in self._parts.items():
                part[diverged] = 0.0 if name in ("qvel", "qacc_warmstart") else before[name][diverged]
            self._batch.forward(np.flatnonzero(diverged), stage=mujoco.mjtStage.mjSTAGE_VEL)
        return diverged

    def look(self, mask: np.ndarray) -> None:
        """Render only where `mask` (N,) is True from now on; elsewhere the last image repeats."""
        self._seen = self._mask("the mask for look", mask)

    def observe(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """The observation of this instant, rendered now where `mask` (N,) is True."""
        return self._observe(self._mask("the mask for observe", mask))

    def _observe(self, drawn: np.ndarray) -> dict[str, np.ndarray]:
        dynamics.observe(self._qpos, self._userdata, self._base, self._orders, self.robot_obs, self.scene_obs)
        images = self._painter.paint(self._poses, self._userdata, self._looks, drawn)
        observation = {IMAGE_PREFIX + name: image for name, image in images.items()}
        observation[STATE] = self.robot_obs.astype(np.float32)
        observation[ENVIRONMENT_STATE] = self.scene_obs.astype(np.float32)
        observation[SCENE] = self._scene_index.copy()
        return observation

    def _info(self) -> dict[str, Any]:
        return {"robot_obs": self.robot_obs.copy(), "scene_obs": self.scene_obs.copy()}

    def states(self, rows: Sequence[int] | None = None) -> list[State]:
        """What the tasks see, for all worlds or for those in `rows`."""
        return [self._state(n) for n in (range(self.num_envs) if rows is None else rows)]

    def _state(self, n: int) -> State:
        data = self._batch.get_data(n, self._scratch)
        contact = data.contact
        masks = dynamics.touching(contact.geom, contact.dist, self._part_of_geom, len(S.PARTS), S.TOUCH)
        qpos, qvel, memory = self._qpos[n].tolist(), self._qvel[n].tolist(), self._userdata[n]
        blocks = {}
        for i, color in enumerate(L.BLOCK_NAMES):
            p, v = dynamics.BLOCKS + 7 * i, dynamics.BLOCKS + 6 * i
            # MuJoCo gives a free body's spin in its own frame; tasks compare it in the world's.
            spin = np.empty(3)
            mujoco.mju_rotVecQuat(spin, self._qvel[n, v + 3 : v + 6], self._qpos[n, p + 3 : p + 7])
            x, y, z = spin.tolist()
            blocks[color] = Block(
                position=tuple(qpos[p : p + 3]),
                quaternion=tuple(qpos[p + 3 : p + 7]),
                linear_velocity=tuple(qvel[v : v + 3]),
                angular_velocity=(x, y, z),
                touches=_names(int(masks[BLOCK_BITS[i]])),
            )
        return State(
            slider=qpos[0],
            drawer=qpos[1],
            button=qpos[2],
            switch=qpos[3],
            lightbulb=bool(memory[dynamics.BULB]),
            led=bool(memory[dynamics.LED]),
            blocks=blocks,
            robot_touches=_names(int(masks[ROBOT_BIT])),
        )

    def save(self) -> np.ndarray:
        """Each world whole, as one row of float64: physics with its warm start, servo targets, lamps, look, scene."""
        rows = [np.reshape(part, (self.num_envs, -1)) for part in self._parts.values()]
        return np.concatenate([*rows, self._looks[:, None], self._scene_index[:, None]], axis=1)

    def restore(self, saved: np.ndarray) -> dict[str, np.ndarray]:
        """Continue from rows of `save()` (same scenes, any process) bit for bit; returns the observation."""
        saved = np.asarray(saved, dtype=np.float64)
        width = sum(int(np.prod(part.shape[1:])) for part in self._parts.values()) + 2
        if saved.shape != (self.num_envs, width):
            raise UserError(f"saved worlds have shape {saved.shape}: this one restores ({self.num_envs}, {width}).")
        if not np.isfinite(saved).all():
            raise UserError("saved worlds hold numbers that are not finite: give rows of save() unchanged.")
        if not np.array_equal(saved[:, -1], self._scene_index):
            there = "".join(L.SCENES[i] if 0 <= i < len(L.SCENES) else "?" for i in saved[:, -1].astype(int))
            raise UserError(
                f"saved worlds are of scenes {there} and this is {''.join(self.scenes)}: restore into the same scenes."
            )
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        start = 0
        for part in self._parts.values():
            size = int(np.prod(part.shape[1:]))
            part[:] = saved[:, start : start + size].reshape(part.shape)
            start += size
        self._looks[:] = saved[:, -2].astype(np.int64)
        self._batch.forward(stage=mujoco.mjtStage.mjSTAGE_VEL)
        return self._observe(np.ones(self.num_envs, bool))

    def close_extras(self, **kwargs: Any) -> None:
        self._painter.close()


def _check_options(cameras: Mapping, randomize: float, leash: Sequence[float], supersample: int, threads: int) -> None:
    for name, size in cameras.items():
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"camera {name!r} has size {size}: give its height and width in pixels.")
    if not 0 <= randomize <= 1:
        raise UserError(f"randomize is {randomize}: give the chance of a random look, 0 to 1.")
    if len(leash) != 2 or not min(leash) > 0:
        raise UserError(f"leash is {leash}: give two positive numbers, metres and radians.")
    if supersample < 1 or threads < 1:
        raise UserError(f"supersample is {supersample} and threads is {threads}: give whole numbers from 1 on.")


_NAMES: dict[int, frozenset[str]] = {}


def _names(mask: int) -> frozenset[str]:
    if mask not in _NAMES:
        _NAMES[mask] = frozenset(name for i, name in enumerate(S.PARTS) if mask >> i & 1)
    return _NAMES[mask]


def random_blocks(rng: np.random.Generator, layout: L.Layout) -> np.ndarray:
    """CALVIN's default start: controls at 0, each block at a random place on a random surface, none near another. (24,)"""
    scene = np.zeros(24)
    placed: list[np.ndarray] = []
    for i in range(3):
        while True:
            surface = str(rng.choice(("table", "slider_left", "slider_right")))
            x, y = rng.uniform(*getattr(layout, surface)), rng.uniform(*L.SURFACE_Y[surface])
            point = np.array([x, y])
            if all(np.abs(point - other).max() > 0.09 for other in placed):
                break
        placed.append(point)
        z = (L.TABLE_TOP if surface == "table" else L.PLANK_TOP) + 0.02
        scene[6 + 6 * i : 12 + 6 * i] = [x, y, z, 0, 0, rng.uniform(-np.pi, np.pi)]
    return scene
