"""The playtable for `gymnasium.make` and `gymnasium.make_vec`, id "playtable/Playtable-v0"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

import envs.playtable as playtable
from envs.playtable.scene import CONTROL_HZ
from envs.playtable.state import State
from envs.playtable.world import CALVIN_CAMERAS
from vla.spec import UserError, image_key

FILM = "static"
"""The camera that `render` shows."""


class PlaytableEnv(gymnasium.Env):
    """One world, unbatched: observations are a row of `Playtable`'s; rewards are 0 and episodes have no end.

    scene: one letter. render_mode: None, or "rgb_array" for the static camera's picture. Other options as for `Playtable`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self,
        scene: str = "D",
        cameras: Mapping[str, tuple[int, int]] = CALVIN_CAMERAS,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"unknown render mode {render_mode!r}: use rgb_array or None.")
        if render_mode and FILM not in cameras:
            raise UserError(f"render mode {render_mode!r} needs the camera {FILM!r} and cameras are {sorted(cameras)}: add it.")
        if len(scene) != 1:
            raise UserError(f"scene is {scene!r}: a single world has one scene, of A, B, C and D.")
        self.render_mode = render_mode
        self.world = playtable.make(scene, 1, cameras, **options)
        self.vla_spec = self.world.vla_spec
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space
        self._picture: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As `Playtable.reset`, with one row for each option: robot_obs (15,), scene_obs (24,), look."""
        super().reset(seed=seed)
        rows = {name: np.asarray(value)[None] for name, value in (options or {}).items()}
        observation, info = self.world.reset(seed=seed, options=rows)
        return self._first(observation), self._row(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step under a relative action (7,)."""
        observation, _, _, _, info = self.world.step(np.asarray(action)[None])
        return self._first(observation), 0.0, False, False, self._row(info)

    def render(self) -> np.ndarray | None:
        """The static camera's last picture, uint8 (H, W, 3), in render mode "rgb_array"."""
        return None if self.render_mode is None or self._picture is None else self._picture.copy()

    def state(self) -> State:
        """What the tasks see now."""
        return self.world.states()[0]

    def save(self) -> np.ndarray:
        """The world whole, as one float64 vector."""
        return self.world.save()[0]

    def restore(self, saved: np.ndarray) -> dict[str, np.ndarray]:
        """Continue from a vector of `save`; returns the observation."""
        return self._first(self.world.restore(np.asarray(saved)[None]))

    def close(self) -> None:
        self.world.close()

    def _first(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row = self._row(observation)
        self._picture = row.get(image_key(FILM))
        return row

    @staticmethod
    def _row(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value[0] for name, value in batch.items()}


def make_vector(num_envs: int = 1, **options: Any) -> playtable.Playtable:
    """`envs.playtable.make` under gymnasium's name for the number of worlds."""
    return playtable.make(num_worlds=num_envs, **options)
