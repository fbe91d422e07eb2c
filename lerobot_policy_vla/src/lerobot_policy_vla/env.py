"""`--env.type=playtable`: single tasks of the playtable for lerobot-eval and for evaluation while lerobot-train trains.

LeRobot knows one task an episode, so an episode is the first task of one of the 1000 evaluation chains, from that chain's
start, and its success rate corresponds to "1 in a row" of vla-evaluate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end

from envs.playtable.benchmark import Benchmark
from envs.playtable.scene import CONTROL_HZ
from envs.playtable.single import PlaytableEnv
from envs.playtable.tasks import TASKS
from envs.playtable.world import ACTION_ENTRIES, CALVIN_CAMERAS, STATE_ENTRIES
from vla.spec import ACTION, STATE, UserError, image_key

FILM = "static"


@EnvConfig.register_subclass("playtable")
@dataclass
class PlaytableConfig(EnvConfig):
    """task: one of the 34, for episodes of the chains that begin with it; without one, all chains. split: wording.

    Episode number i (from `--seed` on) plays chain i modulo their number. sizes: camera -> height and width.
    """

    task: str | None = None
    fps: int = CONTROL_HZ
    episode_length: int = Benchmark.max_steps
    split: str = "validation"
    sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(CALVIN_CAMERAS))
    renderer: str = "raster"

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in TASKS:
            raise UserError(f"env.task is {self.task!r}: use one of {', '.join(TASKS)}, or leave it out for all.")
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (len(ACTION_ENTRIES),)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(STATE_ENTRIES),)),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": STATE}
        for camera, size in self.sizes.items():
            self.features[f"pixels/{camera}"] = PolicyFeature(FeatureType.VISUAL, (*size, 3))
            self.features_map[f"pixels/{camera}"] = image_key(camera)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "split": self.split,
            "sizes": self.sizes,
            "renderer": self.renderer,
            "episode_length": self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """{"playtable": {0: n_envs worlds}}, each in a process of its own if `use_async_envs`."""
        make = freeze_after_episode_end(partial(Episode, **self.gym_kwargs))
        if use_async_envs and n_envs > 1:
            worlds: Any = AsyncVectorEnv([make] * n_envs, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP)
        else:
            worlds = SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        return {"playtable": {0: worlds}}


class Episode(gymnasium.Env):
    """One world playing one task at a time; LeRobot asks it for `task`, `task_description` and `_max_episode_steps`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - gymnasium's own form
    render_mode = "rgb_array"

    def __init__(
        self, task: str | None, split: str, sizes: Mapping[str, tuple[int, int]], renderer: str, episode_length: int
    ) -> None:
        self._benchmark, self._split, self._max_episode_steps = Benchmark(), split, episode_length
        self._chains = [(i, c) for i, c in enumerate(self._benchmark.chains()) if task in (None, c.tasks[0])]
        self._world = PlaytableEnv("D", dict(sizes), renderer=renderer)
        box = gymnasium.spaces.Box
        pixels = gymnasium.spaces.Dict({c: box(0, 255, (*size, 3), np.uint8) for c, size in sizes.items()})
        agent_pos = box(-np.inf, np.inf, (len(STATE_ENTRIES),), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"pixels": pixels, "agent_pos": agent_pos})
        self.action_space = box(-1, 1, (len(ACTION_ENTRIES),), np.float32)
        self._cameras = list(sizes)
        self.task, self.task_description = task or "", ""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The chain of number `seed`, or a random one."""
        super().reset(seed=seed)
        drawn = seed if seed is not None else int(self.np_random.integers(2**31))
        number, chain = self._chains[drawn % len(self._chains)]
        observation, _ = self._world.reset(options={"robot_obs": chain.robot_obs, "scene_obs": chain.scene_obs})
        self.task = chain.tasks[0]
        sentences = self._benchmark.instructions(self.task, self._split)
        self.task_description = sentences[number % len(sentences)]
        self._begin, self._steps = self._world.state(), 0
        return self._seen(observation), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step; the episode ends with the task's success, which is rewarded with 1, or when its time is over."""
        observation, *_ = self._world.step(action)
        self._steps += 1
        solved = self._benchmark.solved(self.task, self._begin, self._world.state())
        late = self._steps >= self._max_episode_steps
        return self._seen(observation), float(solved), solved, late and not solved, {"is_success": solved}

    def render(self) -> np.ndarray:
        """The last picture of the static camera, or of the first one."""
        return self._pictures.get(FILM, next(iter(self._pictures.values())))

    def close(self) -> None:
        self._world.close()

    def _seen(self, observation: Mapping[str, np.ndarray]) -> dict[str, Any]:
        self._pictures = {camera: observation[image_key(camera)] for camera in self._cameras}
        return {"pixels": self._pictures, "agent_pos": observation[STATE]}
