"""A world small enough to reason about: a point on a square with coloured goals, with the playtable's contracts.

State (x, y): the point moves by 0.1 times the first two action entries, clipped to [0, 1]; the other five do nothing.
A task "reach_<colour>" is solved when the point comes within 0.1 of that goal, having started outside.
Pictures are black but for a white dot at the point, so that a policy can really see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from vla.spec import PLAN, PLAN_WEIGHT, STATE, Entry, Spec, image_key

GOALS = {"red": (0.1, 0.1), "green": (0.9, 0.1), "blue": (0.9, 0.9), "white": (0.1, 0.9)}
TASKS = tuple(f"reach_{colour}" for colour in GOALS)
SIZE = 16


def point_spec(cameras: bool = True) -> Spec:
    return Spec(
        cameras={"static": (SIZE, SIZE), "wrist": (SIZE, SIZE)} if cameras else {},
        state=(Entry("x", "m"), Entry("y", "m")),
        action=tuple(Entry(name, "1", -1, 1) for name in ("dx", "dy", "dz", "roll", "pitch", "yaw", "press")),
        action_kind="relative_pose",
        control_hz=30.0,
        frame="square",
    )


@dataclass(frozen=True)
class Chain:
    tasks: tuple[str, ...]
    robot_obs: np.ndarray
    scene_obs: np.ndarray

    @property
    def start(self) -> dict[str, np.ndarray]:
        return {"robot_obs": self.robot_obs, "scene_obs": self.scene_obs}


class PointWorld(VectorEnv):
    """N points. `drawn` counts the pictures taken in each world."""

    def __init__(self, num_worlds: int = 1, scene: str = "AB", cameras: Any = None):
        self.num_envs = num_worlds
        self.vla_spec = point_spec()
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (7,))
        self.scenes = tuple(scene[i % len(scene)] for i in range(num_worlds))
        self.points = np.zeros((num_worlds, 2))
        self.pictures = np.zeros((num_worlds, SIZE, SIZE, 3), np.uint8)
        self.seen = np.ones(num_worlds, bool)
        self.drawn = np.zeros(num_worlds, int)
        self.resets: list[np.ndarray] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        options = options or {}
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        self.resets.append(np.array(mask))
        start = options.get("robot_obs", np.full((self.num_envs, 2), 0.5))
        self.points[mask] = start[mask]
        return self._observation(mask), {}

    def step(self, actions: np.ndarray) -> Any:
        assert actions.shape == (self.num_envs, 7)
        assert actions.dtype == np.float32
        self.points = np.clip(self.points + 0.1 * actions[:, :2], 0, 1)
        no = np.zeros(self.num_envs, bool)
        return self._observation(np.ones(self.num_envs, bool)), np.zeros(self.num_envs), no, no, {}

    def look(self, mask: np.ndarray) -> None:
        self.seen = np.array(mask)

    def observe(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        for i in np.flatnonzero(mask):
            self.pictures[i] = 0
            row, column = np.round(self.points[i] * (SIZE - 1)).astype(int)
            self.pictures[i, row, column] = 255
            self.drawn[i] += 1
        return self._observation(np.zeros(self.num_envs, bool))

    def states(self, rows: Any) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in self.points[list(rows)]]

    def close(self) -> None:  # type: ignore[override]
        pass

    def _observation(self, fresh: np.ndarray) -> dict[str, np.ndarray]:
        if (fresh & self.seen).any():
            self.observe(fresh & self.seen)
        images = {image_key(camera): self.pictures.copy() for camera in self.vla_spec.cameras}
        return {**images, STATE: self.points.astype(np.float32)}


class HoldingWorld(PointWorld):
    """Points that can also hold: with the press down, so that a hold can be told from a world that is idle."""

    def holding(self) -> np.ndarray:
        return np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (self.num_envs, 1))


def near(state: tuple[float, float], task: str) -> bool:
    goal = GOALS[task.removeprefix("reach_")]
    return float(np.hypot(state[0] - goal[0], state[1] - goal[1])) < 0.1


class Benchmark:
    """The rules: chains, success and wording."""

    name = "points"
    max_steps = 30

    def __init__(self, count: int = 20):
        self.count = count

    def chains(self) -> list[Chain]:
        rng = np.random.default_rng(0)
        drawn = [(rng.integers(4, size=5), rng.uniform(0.3, 0.7, 2)) for _ in range(self.count)]
        return [Chain(tuple(TASKS[k] for k in tasks), start, np.zeros(1)) for tasks, start in drawn]

    def solved(self, task: str, start: Any, end: Any) -> bool:
        return near(end, task) and not near(start, task)

    def alternatives(self, chain: Chain) -> list[str]:
        return [task for task in TASKS if task != chain.tasks[0] and not near(tuple(chain.robot_obs), task)]

    def instructions(self, task: str, split: str) -> tuple[str, ...]:
        words = {"validation": ["go to"], "heldout": ["travel towards", "wander off to"], "train": ["move to", "walk to"]}
        return tuple(f"{word} {task.removeprefix('reach_')}" for word in words[split])


class PointPlay:
    """Play among the goals: any goal that is not near is a task."""

    max_steps = 40

    def start(self, rng: np.random.Generator, scene: str, counts: Any) -> dict[str, np.ndarray]:
        return {"robot_obs": rng.uniform(0.2, 0.8, 2)}

    def choose(self, rng: np.random.Generator, state: Any, scene: str, counts: Any) -> str | None:
        valid = [task for task in TASKS if not near(state, task)]
        least = min(counts[task] for task in valid)
        return str(rng.choice([task for task in valid if counts[task] == least]))

    def solved(self, task: str, start: Any, end: Any) -> bool:
        return near(end, task) and not near(start, task)

    def instructions(self, task: str) -> tuple[str, ...]:
        return Benchmark().instructions(task, "train")


class PointPolicy:
    """Walks towards the colour in the instruction, with noise of its own and, rarely, the wrong colour.

    It keeps the whole truth of a contract-abiding policy in memory: a random state per world and how often it was asked.
    """

    history = False
    foresight_steps = 3

    def __init__(self, horizon: int = 4, wrong: float = 0.2, noise: float = 0.5, history: bool = False):
        self.spec = point_spec()
        self.horizon, self.wrong, self.noise, self.history = horizon, wrong, noise, history
        self.batches: list[int] = []

    def begin(self, seeds: Any) -> Any:
        return {"seed": np.array(seeds, np.int64), "asked": np.zeros(len(seeds), int), "seen": np.zeros(len(seeds), int)}

    def remember(self, observation: Any, memory: Any) -> Any:
        return {**memory, "seen": memory["seen"] + 1}

    def act(self, observation: Any, memory: Any) -> Any:
        self.batches.append(len(observation["task"]))
        chunks = []
        for i, sentence in enumerate(observation["task"]):
            rng = np.random.default_rng([memory["seed"][i], memory["asked"][i]])
            colour = sentence.split()[-1]
            if np.random.default_rng(memory["seed"][i]).random() < self.wrong:
                colour = "white" if colour != "white" else "red"
            picture = observation[image_key("static")][i, :, :, 0]
            here = np.argwhere(picture)[0] / (SIZE - 1)
            delta = np.clip(np.array(GOALS[colour]) - here, -0.1, 0.1) * 5
            walk = delta + self.noise * rng.normal(size=(self.horizon, 2))
            chunks.append(np.concatenate([walk, np.ones((self.horizon, 5))], axis=1))
        memory = {**memory, "asked": memory["asked"] + 1, "seen": memory["seen"] + 1}
        return np.clip(np.array(chunks, np.float32), -1, 1), memory

    def foresee(self, memory: Any) -> dict[str, np.ndarray]:
        shape = (len(memory["asked"]), SIZE, SIZE, 3)
        return {
            camera: np.full(shape, 7, np.uint8) * (memory["asked"] % 2)[:, None, None, None].astype(np.uint8)
            for camera in self.spec.cameras
        }


class ContinuingPolicy(PointPolicy):
    """Goes on from the plan that it is shown, as far as each action weighs."""

    continues = True

    def act(self, observation: Any, memory: Any) -> Any:
        chunk, memory = super().act(observation, memory)
        if PLAN in observation:
            plan, weight = observation[PLAN], observation[PLAN_WEIGHT][:, :, None]
            length = plan.shape[1]
            chunk[:, :length] = (1 - weight) * chunk[:, :length] + weight * plan
        return chunk, memory
