"""The genuine CALVIN simulator as a world (far/calvin.py is its other half), with the playtable's spec, states and tasks.

Whatever acts in the playtable acts here: experts, trained policies, play. What CALVIN's code and assets are is the user's
affair: `make calvin CALVIN_ROOT=...` takes them from a clone of hers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from envs.elsewhere.world import ROOT, Elsewhere
from envs.playtable import benchmark
from envs.playtable.layout import SCENES, layout_of
from envs.playtable.state import State
from envs.playtable.tasks import from_calvin_info
from envs.playtable.world import CALVIN_CAMERAS, SCENE
from vla.spec import STATE, UserError

REVISIONS = ("1431a46", "797142c")


class Calvin(Elsewhere):
    """N worlds of CALVIN, each in a process of its own.

    scene: letters out of ABCD, which the worlds take in turn. revision: the published commit of calvin_env, a folder in `root`
    (a relative path begins at this checkout). renderer: "tiny" (PyBullet's software renderer) or "egl" (OpenGL, as in CALVIN's
    dataset); their pictures differ much. mends: traps of the original that are mended unless their name is here with false;
    with all of them false, what comes out is what the published code gives.

        actions    `step` leaves its caller's actions as they are; 1431a46 scales them in place
        history    a reset leaves no trace of the past, and takes the start's gripper command
        led        the first press of the button switches the LED, whatever it was at the reset

    python, cameras, versions, limits, restarts: as for `Elsewhere`.
    """

    INSTALL = "make calvin CALVIN_ROOT=<your clone of mees/calvin>"
    AT: Mapping[str, int] = {"robot_obs": 15, "scene_obs": 24}

    def __init__(
        self,
        python: str = ".worlds/calvin/bin/python",
        root: str = ".worlds/calvin_env",
        revision: str = REVISIONS[0],
        scene: str | Sequence[str] = "D",
        num_worlds: int = 1,
        cameras: Mapping[str, tuple[int, int]] = CALVIN_CAMERAS,
        renderer: str = "tiny",
        mends: Mapping[str, bool] | None = None,
        **others: Any,
    ) -> None:
        if not len(scene):
            raise UserError("scene is empty: name one or several of A, B, C, D.")
        for letter in scene:
            layout_of(letter)
        if renderer not in ("tiny", "egl"):
            raise UserError(f"renderer is {renderer!r}: CALVIN draws with tiny (software) or egl (OpenGL).")
        if revision not in REVISIONS:
            raise UserError(f"CALVIN's revision is {revision!r}: use one of {', '.join(REVISIONS)}.")
        folder = ROOT / root
        if not (folder / revision / "calvin_env").is_dir():
            raise UserError(f"CALVIN's code is not in {folder / revision}: run `{self.INSTALL}`, or name its folder in root.")
        self.renderer = renderer
        options = {"root": str(folder), "revision": revision, "egl": renderer == "egl", "mends": dict(mends or {})}
        super().__init__("calvin", "calvin", python, ["play"], num_worlds, cameras, options, scene=list(scene), **others)

    def _opening(self, n: int) -> dict[str, Any]:
        return {**self._request, "options": {**self._request["options"], "scene": self.scenes[n]}}

    def _make_spaces(self) -> None:
        super()._make_spaces()
        known = cast(gymnasium.spaces.Dict, self.single_observation_space)
        self.single_observation_space = gymnasium.spaces.Dict({**known.spaces, SCENE: gymnasium.spaces.Discrete(len(SCENES))})
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _observation(self) -> dict[str, np.ndarray]:
        return {**super()._observation(), SCENE: np.array([SCENES.index(scene) for scene in self.scenes])}

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of `Elsewhere`; relative actions (N, 7), not clipped. Nothing ends by itself, and the reward is 0."""
        result = super().step(actions)
        for n, outcome in enumerate(self._outcomes):
            if (changed := outcome["told"]["action"]) is not None:
                actions[n, :6] = changed[:6]
        return result

    def states(self, rows: Sequence[int] | None = None) -> list[State]:  # type: ignore[override]
        """What the tasks see, for all worlds or for those in `rows`."""
        return [from_calvin_info(self.info(n)) for n in (range(self.num_envs) if rows is None else rows)]

    def info(self, n: int) -> dict[str, Any]:
        """What CALVIN's own oracle reads of world n: its info, without the parts of contacts that it does not read."""
        return self._outcomes[n]["told"]["info"]

    def holding(self) -> np.ndarray:
        """Actions (N, 7), float32, under which hands stay where they were told to be, fingers as they are."""
        actions = np.zeros((self.num_envs, 7), np.float32)
        actions[:, 6] = self._buffers[STATE][:, 14]
        return actions


class Benchmark(benchmark.Benchmark):
    """The playtable's benchmark, which is CALVIN's: the same chains, starts, oracle and sentences."""

    name = "calvin"
