"""Collecting play: one task after another without reset, as scripts for the rollout loop, into a dataset.

The work is cut into units. A unit plays episodes in one scene until it has its quota of frames; each episode draws from a
seed of its own, made of the run's seed, the unit and the episode's number in it. So what is collected does not depend on the
number of processes or worlds, and a run that was killed goes on where each unit was.

    episode:  start | task, cut at success or a few steps later | task | ...    until enough tasks, a failure, or none is left
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vla.checkpoint import load_policy
from vla.dagger import Handover
from vla.data.store import Dataset, parts_of
from vla.data.writer import DatasetWriter, Segment, existing_group, frame_arrays, part_path
from vla.parallel import processes, spread
from vla.policy import Observation
from vla.rollout import Follow, Job, Reset, Script, rollout
from vla.spec import ACTION, Spec, UserError
from vla.training.logging import circumstances

Handing = Callable[[int], int]
EPISODES_PER_UNIT = 10_000
UNITS_PER_SEED = 100_000


def _at_once(seed: int) -> int:
    return 0


class Play(Protocol):
    """What is particular to a world: starts, tasks and their order."""

    max_steps: int

    def start(self, rng: np.random.Generator, scene: str, counts: Mapping[str, int]) -> Mapping[str, np.ndarray]: ...

    def choose(self, rng: np.random.Generator, state: Any, scene: str, counts: Mapping[str, int]) -> str | None: ...

    def solved(self, task: str, start: Any, end: Any) -> bool: ...

    def instructions(self, task: str) -> Sequence[str]: ...


@dataclass(frozen=True)
class Manner:
    """How play is recorded.

    tasks: least and most tasks per episode. overrun: share of the tasks that go on for 1 to `overrun_steps` steps after
    success, so that the next one finds the hand still at work. noisy: share of the episodes with bursts of noise; a burst
    begins with chance `burst` at a step, lasts `burst_steps` (least, most), and adds one constant offset, normal with these
    standard deviations in units of the full action. Labels stay clean (DART, Laskey et al. 2017).
    """

    tasks: tuple[int, int] = (6, 10)
    overrun: float = 0.7
    overrun_steps: int = 4
    noisy: float = 0.65
    burst: float = 0.06
    burst_steps: tuple[int, int] = (3, 8)
    translation: float = 0.5
    rotation: float = 0.35


class Bursts:
    """Bends actions (A,) of a relative pose: x, y, z, roll, pitch, yaw and whatever follows, which is left alone."""

    def __init__(self, rng: np.random.Generator, manner: Manner):
        self.rng, self.manner = rng, manner
        self.left, self.offset = 0, np.zeros(6)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        if not self.left and self.rng.random() < self.manner.burst:
            low, high = self.manner.burst_steps
            self.left = int(self.rng.integers(low, high + 1))
            self.offset = self.rng.normal(size=6) * np.repeat([self.manner.translation, self.manner.rotation], 3)
        if not self.left:
            return action
        self.left -= 1
        bent = action.copy()
        bent[:6] = np.clip(action[:6] + self.offset, -1, 1)
        return bent


class Tape:
    """A recorder that keeps the Spec's arrays of every control step."""

    imagines = False

    def __init__(self, spec: Spec):
        self._frames: dict[str, list[np.ndarray]] = {name: [] for name in frame_arrays(spec)}

    def __len__(self) -> int:
        return len(self._frames[ACTION])

    def step(self, observation: Observation, action: np.ndarray, imagined: Any) -> None:
        for name, rows in self._frames.items():
            rows.append(action if name == ACTION else observation[name])

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.stack(rows) for name, rows in self._frames.items()}


@dataclass
class Unit:
    """A share of the work in one scene: how far it has come."""

    number: int
    scene: str
    quota: int
    episodes: int = 0
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def seed(self, run_seed: int) -> int:
        """The number that an episode carries in the dataset; also what it is drawn from."""
        return (run_seed * UNITS_PER_SEED + self.number) * EPISODES_PER_UNIT + self.episodes


def play_episode(seed: int, unit: Unit, play: Play, manner: Manner, tape: Tape, handover: Handing = _at_once) -> Script:
    """The script of one episode; returns its segments and adds to the unit what was done.

    handover: of a task's seed, the step from which on its actions are worth learning (`vla.dagger`)."""
    rng, noise = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    disturb = Bursts(noise, manner) if rng.random() < manner.noisy else None
    state = yield Reset(play.start(rng, unit.scene, unit.counts), seed=int(rng.integers(2**31)))
    segments: list[Segment] = []
    for _ in range(int(rng.integers(manner.tasks[0], manner.tasks[1] + 1))):
        if unit.frames + len(tape) >= unit.quota:
            break
        task = play.choose(rng, state, unit.scene, unit.counts)
        if task is None:
            break
        sentence = str(rng.choice(play.instructions(task)))
        follow = Follow(sentence, int(rng.integers(2**31)), disturb)
        begin, start, solved = len(tape) + handover(follow.seed), state, False
        while not solved and len(tape) - begin < play.max_steps:
            state = yield follow
            solved = play.solved(task, start, state)
        if not solved:
            break
        shown = begin < len(tape)
        for _ in range(int(rng.integers(1, manner.overrun_steps + 1)) if rng.random() < manner.overrun else 0):
            state = yield follow
        if shown:
            segments.append(Segment(begin, len(tape), task, sentence))
            unit.counts[task] += 1
    unit.frames += len(tape)
    unit.episodes += 1
    return segments


def supply(
    world_scenes: Sequence[str],
    spec: Spec,
    units: Sequence[Unit],
    play: Play,
    manner: Manner,
    seed: int,
    handover: Handing = _at_once,
) -> Callable[[int], Job | None]:
    """The jobs for a rollout: each world plays the units of its scene, one episode after another.

    Jobs have the key (unit, episode seed) and a Tape as recorder; their scripts return the segments.
    """
    waiting = {scene: deque(u for u in units if u.scene == scene and u.frames < u.quota) for scene in set(world_scenes)}
    current: dict[int, Unit] = {}

    def next_job(world: int) -> Job | None:
        unit = current.get(world)
        if unit is None or unit.frames >= unit.quota:
            queue = waiting[world_scenes[world]]
            if not queue:
                return None
            unit = current[world] = queue.popleft()
        if unit.episodes >= EPISODES_PER_UNIT:
            raise UserError(
                f"unit {unit.number} has only {unit.frames} frames after {unit.episodes} episodes: lower unit_frames."
            )
        tape, number = Tape(spec), unit.seed(seed)
        return Job((unit, number), play_episode(number, unit, play, manner, tape, handover), tape)

    return next_job


def plan(frames: int, unit_frames: int, scenes: str | Sequence[str]) -> list[Unit]:
    """Units of equal quota, as many for each scene, for at least `frames` frames in all."""
    if frames < 1 or unit_frames < 1:
        raise UserError(f"frames={frames} and unit_frames={unit_frames} must both be at least 1: ask for some frames.")
    rounds = max(1, round(frames / unit_frames / len(scenes)))
    count = rounds * len(scenes)
    return [Unit(k, scenes[k % len(scenes)], -(-frames // count)) for k in range(count)]


def resume(units: Sequence[Unit], out: str, seed: int) -> None:
    """Tell the units what the dataset at `out` already holds; UserError if that was drawn from another seed."""
    if not has_episodes(out):
        return
    done = Dataset(out)
    by_number = {unit.number: unit for unit in units}
    for episode, number in enumerate(done.episode_seeds.tolist()):
        run_seed, place = divmod(number // EPISODES_PER_UNIT, UNITS_PER_SEED)
        unit = by_number.get(place)
        if run_seed != seed or unit is None or done.scenes[episode] != unit.scene:
            raise UserError(
                f"dataset {out} has an episode of seed {run_seed}, unit {place}, scene {done.scenes[episode]}, which this "
                f"command (seed={seed}) would not play: go on with the one that began it, or choose another out."
            )
        unit.episodes = max(unit.episodes, number % EPISODES_PER_UNIT + 1)  # those without a frame left no trace
        unit.frames += int(done.episode_ends[episode] - done.episode_starts[episode])
        tasks = done.segments["task"][done.segments["episode"] == episode]
        unit.counts.update(done.tasks[int(task)] for task in tasks)


def has_episodes(out: str) -> bool:
    """Whether some part of the dataset has committed episodes."""
    groups = (existing_group(part, "r") for part in parts_of(out))
    return any(cast(dict, group.attrs.get("committed", {})).get("episodes") for group in groups if group is not None)


def collect(config: DictConfig) -> Iterator[tuple[int, int]]:
    """Play until `config.frames` frames are in the dataset `config.out`; yields (frames, solved tasks) per episode written,
    first of all what was there before."""
    if existing_group(config.out, "r") is not None:
        raise UserError(f"{config.out} is a dataset in one piece, which cannot be added to in parallel: choose another out.")
    units = plan(config.frames, config.unit_frames, config.env.world.scene)
    resume(units, config.out, config.seed)
    yield sum(unit.frames for unit in units), sum(unit.counts.total() for unit in units)
    workers = processes(config.workers, len(units))
    made = {"command": " ".join(sys.argv), "config": OmegaConf.to_container(config, resolve=True)}
    made |= circumstances(torch.device("cpu"))
    yield from spread(_work, [(part, units[part::workers], made) for part in range(workers)])


def _work(share: tuple[int, list[Unit], dict[str, Any]]) -> Iterator[tuple[int, int]]:
    """One process's units, into a part of the dataset of its own."""
    part, units, made = share
    config = OmegaConf.create(made["config"])
    scenes = config.env.world.scene
    config.env.world.num_worlds = min(config.env.world.num_worlds, -(-len(units) // len(scenes)) * len(scenes))
    world = instantiate(config.env.world, _convert_="all")
    policy, play = instantiate(config.policy, _convert_="all"), instantiate(config.env.play)
    manner = Manner(**cast(dict, OmegaConf.to_container(config.manner)))
    handover = _at_once
    if config.learner is not None:
        policy = Handover(load_policy(config.learner), policy, config.learner_steps, config.execute)
        handover = policy.handover
    jobs = supply(world.scenes, world.vla_spec, units, play, manner, config.seed, handover)
    with DatasetWriter(part_path(config.out, part), world.vla_spec, made) as writer:
        for job, segments in rollout(world, policy, jobs, instantiate(config.executor)):
            (unit, number), tape = cast(tuple[Unit, int], job.key), cast(Tape, job.recorder)
            if len(tape):
                writer.append_episode(tape.arrays(), segments, unit.scene, number)
                yield len(tape), len(segments)
    world.close()
