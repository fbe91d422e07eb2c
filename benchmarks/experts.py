"""How good the scripted experts are: every task from random starts in every scene, and the evaluation chains.

    python -m benchmarks.experts --starts 100 --chains 1000

A start is drawn as play draws it, favouring the task, until the task can be attempted in it. Tasks that begin with a block
in the hand are preceded by the expert taking one off the table, which does not count. Writes benchmarks/results/experts.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import envs.playtable as playtable
from benchmarks.machine import machine
from envs.playtable import layout as L
from envs.playtable.benchmark import Benchmark
from envs.playtable.conditions import can_attempt, graspable_on_table, held
from envs.playtable.experts import Expert
from envs.playtable.play import Play
from envs.playtable.tasks import TASKS, is_solved
from vla.evaluation.long_horizon import evaluate
from vla.evaluation.statistics import bootstrap_mean, wilson
from vla.executor import RecedingHorizon
from vla.policy import Memory, Observation, Policy
from vla.rollout import Follow, Job, Reset, Script, rollout
from vla.spec import TASK

TAKE_STEPS = 240
WORLDS = 32
FROM_THE_HAND = ("place_in_slider", "place_in_drawer", "stack_block")
TAKE = "take: "
"""Before an instruction that is for the expert, whatever policy is on trial."""


@dataclass(frozen=True)
class Trial:
    """One attempt at a task and the start of it, robot_obs (15,) and scene_obs (24,)."""

    scene: str
    task: str
    number: int
    solved: bool
    steps: int
    robot_obs: np.ndarray
    scene_obs: np.ndarray


def play_trial(scene: str, task: str, number: int, seed: int = 0, max_steps: int = Benchmark.max_steps) -> Script:
    """The script of one trial, which depends on its arguments alone; returns a `Trial`."""
    rng = np.random.default_rng([seed, L.SCENES.index(scene), TASKS.index(task), number])
    layout, play = L.layout_of(scene), Play()
    others_done = dict.fromkeys(TASKS, 1) | {task: 0}
    state = None
    while state is None or not can_attempt(task, state, layout):
        options = play.start(rng, scene, others_done)
        state = yield Reset(options)
        if task in FROM_THE_HAND and (colours := graspable_on_table(state)):
            take, steps = Follow(f"{TAKE}lift_{rng.choice(colours)}_block_table"), 0
            while not held(state) and steps < TAKE_STEPS:
                state, steps = (yield take), steps + 1
    start, follow = state, Follow(task, seed=number)
    solved, steps = False, 0
    while not solved and steps < max_steps:
        state, steps = (yield follow), steps + 1
        solved = is_solved(task, start, state)
    return Trial(scene, task, number, solved, steps, options["robot_obs"], options["scene_obs"])


class OnTrial:
    """A policy without memory, but the expert where an instruction begins with TAKE."""

    history = False

    def __init__(self, policy: Policy) -> None:
        self.policy, self.expert, self.spec = policy, Expert(), policy.spec

    def begin(self, seeds: Sequence[int]) -> Memory:
        return None

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        words = np.array(observation[TASK])
        taking = np.char.startswith(words, TAKE)
        actions = np.zeros((len(words), 1, 7), np.float32)
        for policy, rows in ((self.expert, np.flatnonzero(taking)), (self.policy, np.flatnonzero(~taking))):
            if len(rows):
                theirs = {name: value[rows] for name, value in observation.items() if name != TASK}
                theirs[TASK] = [str(words[i]).removeprefix(TAKE) for i in rows]
                actions[rows] = policy.act(theirs, None)[0][:, :1]
        return actions, None

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return None


def trials(
    policy: Policy,
    tasks: Iterable[str] = TASKS,
    scenes: str = "ABCD",
    starts: int = 100,
    seed: int = 0,
    max_steps: int = Benchmark.max_steps,
) -> Iterator[Trial]:
    """Each task `starts` times in each scene; the trials come as they end."""
    for scene in scenes:
        world = playtable.make(scene, min(WORLDS, starts * len(list(tasks))), cameras={})
        wanted = itertools.product(tasks, range(starts))

        def next_job(world_index: int, wanted=wanted, scene=scene) -> Job | None:
            task, number = next(wanted, ("", 0))
            return Job((task, number), play_trial(scene, task, number, seed, max_steps)) if task else None

        yield from (trial for _, trial in rollout(world, OnTrial(policy), next_job, RecedingHorizon(1)))
        world.close()


def rate(found: Sequence[Trial]) -> float:
    """Per cent solved."""
    return 100 * float(np.mean([trial.solved for trial in found]))


def table(found: Sequence[Trial]) -> str:
    """Per cent solved by task (rows) and scene (columns), and the median steps of those solved, in markdown."""
    scenes = sorted({trial.scene for trial in found})
    lines = ["| task | " + " | ".join(scenes) + " | all | steps |", "|---" * (len(scenes) + 3) + "|"]

    def line(name: str, some: list[Trial]) -> str:
        cells = [rate([t for t in some if t.scene == scene]) for scene in scenes] + [rate(some)]
        steps = [t.steps for t in some if t.solved]
        return (
            f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + f" | {np.median(steps) if steps else np.nan:.0f} |"
        )

    for task in TASKS:
        some = [trial for trial in found if trial.task == task]
        if some:
            lines.append(line(task, some))
    overall = wilson(sum(trial.solved for trial in found), len(found))
    lines.append(line("**all**", list(found)))
    lines.append(
        f"\n{len(found)} trials, 95 % interval of the whole {100 * overall['low']:.1f} to {100 * overall['high']:.1f}."
    )
    return "\n".join(lines)


def chains(count: int) -> str:
    """The expert in the first `count` evaluation chains, in markdown."""
    world = playtable.make("D", WORLDS, cameras={})
    results = list(evaluate(world, Expert(), Benchmark(), range(count), RecedingHorizon(1)))
    solved = np.array([result["solved"] for result in results])
    mean = bootstrap_mean(solved.tolist())
    failed: dict[str, int] = {}
    for result in results:
        last = result["attempts"][-1]
        if not last["solved"]:
            failed[last["task"]] = failed.get(last["task"], 0) + 1
    in_a_row = " ".join(f"{100 * np.mean(solved >= k):.1f}" for k in range(1, 6))
    lost = ", ".join(f"{task} {n}" for task, n in sorted(failed.items(), key=lambda item: -item[1])) or "none"
    return (
        f"{count} chains of the long-horizon protocol in scene D: average length **{mean['value']:.3f}** "
        f"[{mean['low']:.3f}, {mean['high']:.3f}]; 1 to 5 in a row, per cent: {in_a_row}. Where chains ended early: {lost}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=100, help="for each task and scene")
    parser.add_argument("--scenes", default="ABCD")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--chains", type=int, default=1000, help="0 leaves them out")
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument("--failures", help="an .npz file for the starts of the trials that failed")
    parser.add_argument("--out", default="benchmarks/results/experts.md")
    options = parser.parse_args()
    found = list(trials(Expert(), options.tasks, options.scenes, options.starts, options.seed))
    parts = [table(found)] + ([chains(options.chains)] if options.chains else [])
    print("\n\n".join(parts))
    if options.failures:
        failed = sorted((t for t in found if not t.solved), key=lambda t: (t.task, t.scene, t.number))
        columns = {name: np.array([getattr(t, name) for t in failed]) for name in Trial.__dataclass_fields__}
        np.savez(options.failures, **columns)  # type: ignore[arg-type]
    command = f"python -m benchmarks.experts --starts {options.starts} --chains {options.chains} --seed {options.seed}"
    text = "\n\n".join(["# Experts", (__doc__ or "").split("\n\n")[2].strip(), f"    {command}", machine(), *parts])
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
