"""How far the playtable is from the genuine CALVIN, and what acts in the one does in the other.

    make calvin CALVIN_ROOT=<clone of mees/calvin>
    vla-evaluate env=calvin policy=expert execute=1 chains=100 out=runs/calvin/expert
    vla-evaluate env=calvin checkpoint=checkpoints/gr1_small chains=100 out=runs/calvin/gr1_small
    python -m benchmarks.fidelity --scores runs/calvin/expert runs/calvin/gr1_small

starts: the same robot_obs and scene_obs given to both, those of the first evaluation chains and those that play draws in each
scene. paths: the same 60 actions from the same start, random ones that wander through free space, and what the experts do from
the chains' starts up to the first contact in either world. cameras: what both say of where a point of space is in the picture,
and where the blocks are in the pictures themselves. costs: CPU time of the simulator's process. experts: the playtable's
scripted experts in both worlds, from the same starts (as benchmarks/experts.py draws them). scores: evaluations by vla-evaluate
as in the commands above. Goals: 1 mm, 1 cm, 1 pixel. Each part that is run anew replaces its section of
benchmarks/results/fidelity.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy.spatial.transform import Rotation

import envs.playtable as playtable
from benchmarks.experts import FROM_THE_HAND, OnTrial, Trial, play_trial
from benchmarks.machine import machine
from envs.elsewhere.calvin import Calvin
from envs.playtable.chains import evaluation_chains
from envs.playtable.experts import Expert
from envs.playtable.play import Play
from envs.playtable.starts import HAND_HIGH, HAND_LOW
from envs.playtable.state import COLOURS
from envs.playtable.tasks import TASKS
from envs.playtable.world import CALVIN_CAMERAS
from vla.executor import RecedingHorizon
from vla.rollout import Job, rollout
from vla.spec import IMAGE_PREFIX, STATE, TASK

OUT = Path("benchmarks/results/fidelity.md")
STEPS = 60
NEAR, FAR = 0.05, 0.5
"""Metres before the wrist's camera in which points are compared."""
SHADES = {"red": (1, 0, 0), "blue": (0, 0, 1), "pink": (1, 0, 1)}


def both(start: Mapping[str, np.ndarray], worlds: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    """What each of the worlds, of one each, observes after the same reset."""
    return [world.reset(options={name: row[None] for name, row in start.items()})[0] for world in worlds]


def starts(options: argparse.Namespace) -> str:
    lines = [
        "| scene | starts | tool centre point, mm | hand, mrad | arm joints, mrad | block centres, mm | doors, mm |",
        "|---" * 7 + "|",
    ]
    for scene in options.scenes:
        rng, play = np.random.default_rng(0), Play()
        drawn = [(f"{scene}, play's", play.start(rng, scene, {})) for _ in range(options.starts)]
        if scene == "D":
            drawn += [("D, the chains'", chain.start) for chain in evaluation_chains(options.starts)]
        here, there = playtable.make(scene, 1, cameras={}), Calvin(scene=scene, cameras={})
        found: dict[str, list[list[float]]] = {}
        for kind, start in drawn:
            a, b = both(start, (here, there))
            x, y = a[STATE][0].astype(float), b[STATE][0].astype(float)
            turn = (Rotation.from_euler("xyz", x[3:6]) * Rotation.from_euler("xyz", y[3:6]).inv()).magnitude()
            blocks = [
                np.linalg.norm(np.subtract(s.blocks[c].position, t.blocks[c].position))
                for c in COLOURS
                for s, t in [(here.states()[0], there.states()[0])]
            ]
            doors = np.abs(here.scene_obs[0, :2] - b["observation.environment_state"][0, :2]).max()
            row = [np.linalg.norm(x[:3] - y[:3]), turn, np.abs(x[7:14] - y[7:14]).max(), max(blocks), doors]
            found.setdefault(kind, []).append([float(1e3 * value) for value in row])
        for kind, rows in found.items():
            lines.append(f"| {kind} | {len(rows)} | " + " | ".join(f"{v:.4f}" for v in np.max(rows, 0)) + " |")
        here.close()
        there.close()
    return "Largest differences.\n\n" + "\n".join(lines)


def wander(rng: np.random.Generator, tcp: np.ndarray) -> np.ndarray:
    """60 actions (60, 7), slow waves of every entry, whose commanded path stays where the hand meets nothing."""
    time = np.arange(STEPS)[:, None] / 30
    while True:
        waves = [np.sin(2 * np.pi * (rng.uniform(0.2, 1, 6) * time + rng.uniform(0, 1, 6))) for _ in range(2)]
        actions = np.clip(sum(waves) * [1, 1, 1, 0.4, 0.4, 0.4], -1, 1)
        path = tcp + 0.02 * np.cumsum(actions[:, :3], 0)
        if ((path > HAND_LOW + 0.03) & (path < HAND_HIGH)).all():
            return np.column_stack([actions, np.where(rng.random() < 0.5, 1.0, -1.0) * np.ones(STEPS)])


def reaching(world: Any, task: str) -> np.ndarray:
    """The expert's next 60 actions (60, 7) for a task, of a playtable of one."""
    expert, observation, actions = Expert(), world.observe(np.zeros(1, bool)), []
    for _ in range(STEPS):
        actions.append(expert.act({**observation, TASK: [task]}, None)[0][0, 0].astype(float))
        observation, *_ = world.step(actions[-1][None])
    return np.array(actions)


def apart(worlds: Sequence[Any], start: Mapping[str, np.ndarray], actions: np.ndarray) -> list[float]:
    """Distance of the two tool centre points after each action, millimetres, up to the first contact in either world."""
    both(start, worlds)
    distances = []
    for action in actions:
        here, there = (world.step(action[None])[0][STATE][0, :3].astype(float) for world in worlds)
        if any(world.states()[0].robot_touches for world in worlds):
            break
        distances.append(1e3 * float(np.linalg.norm(here - there)))
    return distances


def paths(options: argparse.Namespace) -> str:
    worlds = playtable.make("D", 1, cameras={}), Calvin(cameras={})
    rng, chains = np.random.default_rng(0), evaluation_chains(options.paths)
    lines = [
        "| actions | sequences | steps compared | median of the largest, mm | largest, mm | under 10 mm |",
        "|---" * 6 + "|",
    ]
    found: dict[str, list[list[float]]] = {"wandering": [], "the experts', up to a contact": []}
    for chain in chains:
        actions = wander(rng, chain.robot_obs[:3])
        found["wandering"].append(apart(worlds, chain.start, actions))
        both(chain.start, worlds[:1])
        actions = reaching(worlds[0], chain.tasks[0])
        found["the experts', up to a contact"].append(apart(worlds, chain.start, actions))
    for kind, rows in found.items():
        largest = np.array([max(row) for row in rows if row])
        steps = sum(map(len, rows))
        lines.append(
            f"| {kind} | {len(largest)} | {steps} | {np.median(largest):.1f} | {largest.max():.1f} "
            f"| {np.mean(largest < 10):.0%} |"
        )
    for world in worlds:
        world.close()
    return "Largest distance of the tool centre points within a sequence.\n\n" + "\n".join(lines)


def project(matrix: Sequence[float], points: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pixels (N, 2), right and down, of points (N, 3) under a matrix of a Spec."""
    right, down, ahead = np.reshape(matrix, (3, 4)) @ np.column_stack([points, np.ones(len(points))]).T
    return np.column_stack([right / ahead * size[1], down / ahead * size[0]])


def centre(picture: np.ndarray, colour: str) -> np.ndarray | None:
    """Middle of the pixels (column, row) of a block's colour in a picture (H, W, 3); None if there are few."""
    shade = picture / np.maximum(picture.max(-1, keepdims=True), 1)
    pixels = np.argwhere((np.abs(shade - SHADES[colour]).max(-1) < 0.45) & (picture.max(-1) > 90))
    return pixels.mean(0)[::-1] if len(pixels) >= 30 else None


def cameras(options: argparse.Namespace) -> str:
    here, there = playtable.make("D", 1, cameras=CALVIN_CAMERAS), Calvin(cameras=CALVIN_CAMERAS, renderer=options.renderer)
    table = np.stack(np.meshgrid(np.linspace(-0.44, 0.44, 12), np.linspace(-0.4, 0.18, 9), np.linspace(0.3, 0.7, 9)), -1)
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-0.5, 0.5, 21), np.linspace(0, 0.5, 11)), -1)
    lines = ["| camera | points in the picture | largest difference, pixels |", "|---|---|---|"]
    for name, points, kind in (("static", table, "projections"), ("wrist", grid, "hand_projections")):
        mine, theirs = (getattr(world.vla_spec, kind)[name] for world in (here, there))
        size, points = CALVIN_CAMERAS[name], points.reshape(-1, 3)
        ahead = np.reshape(theirs, (3, 4))[2] @ np.column_stack([points, np.ones(len(points))]).T
        points = points[ahead > NEAR] if name == "static" else points[(ahead > NEAR) & (ahead < FAR)]
        a, b = project(mine, points, size), project(theirs, points, size)
        seen = ((b >= 0) & (b < size[::-1])).all(1)
        lines.append(f"| {name} | {seen.sum()} | {np.linalg.norm(a - b, axis=1)[seen].max():.4f} |")
    shifts: dict[str, list[float]] = {"static": [], "wrist": []}
    for chain in evaluation_chains(options.pictures):
        pair = both(chain.start, (here, there))
        for name, colour in itertools.product(shifts, COLOURS):
            a, b = (centre(each[IMAGE_PREFIX + name][0].astype(float), colour) for each in pair)
            if a is not None and b is not None:
                shifts[name].append(float(np.linalg.norm(a - b)))
    for world in (here, there):
        world.close()
    told = "; ".join(
        f"{name}: {len(rows)} blocks, median {np.median(rows):.2f}, largest {max(rows):.2f}" for name, rows in shifts.items()
    )
    return (
        "\n".join(lines) + f"\n\nDistance in pixels between the middles of the same block's pixels in the two pictures of "
        f"{options.pictures} starts ({options.renderer} renderer): {told}. Shading and what hides a part of a block move it."
    )


def costs(options: argparse.Namespace) -> str:
    """CPU time of the far process alone."""
    lines = ["| | CPU ms |", "|---|---|"]
    chain = evaluation_chains(1)[0]
    start = {name: row[None] for name, row in chain.start.items()}

    def measured(world: Calvin, what: Callable[[], Any], times: int) -> float:
        process = psutil.Process(world._processes[0].pid)
        before = sum(process.cpu_times()[:2])
        for _ in range(times):
            what()
        return 1e3 * (sum(process.cpu_times()[:2]) - before) / times

    for name, history in (("a reset in a new simulator (`history` mended)", True), ("a reset as published", False)):
        world = Calvin(cameras={}, mends={"history": history})
        world.reset(options=start)
        lines.append(f"| {name} | {measured(world, lambda w=world: w.reset(options=start), 20):.0f} |")
        if history:
            step = measured(world, lambda w=world: w.step(w.holding()), 200)
            lines.append(f"| a control step without pictures | {step:.1f} |")
        world.close()
    for sizes in (CALVIN_CAMERAS, {"static": (96, 96), "wrist": (96, 96)}):
        world = Calvin(cameras=sizes, renderer=options.renderer)
        world.reset(options=start)
        named = " and ".join(f"{camera} {h}x{w}" for camera, (h, w) in sizes.items())
        time = measured(world, lambda w=world: w.observe(np.ones(1, bool)), 10)
        lines.append(f"| pictures, {named}, {options.renderer} renderer | {time:.0f} |")
        world.close()
    return "\n".join(lines)


def trials(world: Any, scene: str, count: int, tasks: Sequence[str]) -> Iterator[Trial]:
    """Each task `count` times, by the experts."""
    wanted = itertools.product(tasks, range(count))

    def next_job(world_index: int) -> Job | None:
        task, number = next(wanted, ("", 0))
        return Job((task, number), play_trial(scene, task, number)) if task else None

    yield from (trial for _, trial in rollout(world, OnTrial(Expert()), next_job, RecedingHorizon(1)))
    world.close()


def experts(options: argparse.Namespace) -> str:
    found: dict[str, list[Trial]] = {"playtable": [], "CALVIN": []}
    for scene in options.scenes:
        worlds = playtable.make(scene, 8, cameras={}), Calvin(scene=scene, num_worlds=options.worlds, cameras={})
        for name, world in zip(found, worlds, strict=True):
            found[name] += trials(world, scene, options.trials, options.tasks)
    lines = ["| task | playtable | CALVIN | steps, playtable | steps, CALVIN |", "|---|---|---|---|---|"]
    for task in [*options.tasks, "**all**"]:
        rows = [[t for t in found[name] if task in (t.task, "**all**")] for name in found]
        solved = [f"{sum(t.solved for t in row)}/{len(row)}" for row in rows]
        steps = [f"{np.median([t.steps for t in row if t.solved] or [np.nan]):.0f}" for row in rows]
        lines.append(f"| {task} | " + " | ".join([*solved, *steps]) + " |")
    lines.append(f"\nMedian steps of those solved. Scenes {options.scenes}; {', '.join(FROM_THE_HAND)} begin with a lift.")
    return "\n".join(lines)


def scores(options: argparse.Namespace) -> str:
    lines = [
        "| policy | world | renderer | pictures | chains | average length | 1 to 5 in a row, % |",
        "|---" * 7 + "|",
    ]
    ended = []
    for folder in options.scores:
        result = json.loads(Path(folder, "results.json").read_text())
        settings, summary = result["settings"], result["summary"]
        mean, pictures = summary["average_length"], settings["cameras"]
        lines.append(
            f"| {settings['policy']} | {settings['world']}, {settings['world_config'].get('revision', '')} "
            f"| {settings['renderer']} | {', '.join(f'{c} {h}x{w}' for c, (h, w) in pictures.items())} | {summary['chains']} "
            f"| **{mean['value']:.3f}** [{mean['low']:.3f}, {mean['high']:.3f}] "
            f"| {' '.join(f'{100 * rate["value"]:.1f}' for rate in summary['in_a_row'])} |"
        )
        tasks = ", ".join(f"{task} {row['successes']}/{row['attempts']}" for task, row in summary["tasks"].items())
        ended.append(f"{settings['policy']} on {settings['renderer']}: {tasks}.")
    return "\n".join([*lines, "\nTask by task:\n", *ended])


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "starts": starts, "paths": paths, "cameras": cameras, "costs": costs, "experts": experts, "scores": scores,
}  # fmt: skip


def put(title: str, body: str) -> None:
    """Replace a section of the table file, or add it, in the order of PARTS."""
    head = "# Fidelity\n\n" + (__doc__ or "").split("\n\n")[2].strip() + "\n"
    text = OUT.read_text() if OUT.exists() else ""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", text, re.M | re.S))
    sections[title] = body + "\n"
    OUT.write_text(head + "".join(f"\n## {name}\n\n{sections[name].rstrip()}\n" for name in PARTS if name in sections))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="by default all; scores only where --scores names any")
    parser.add_argument("--scenes", default="ABCD")
    parser.add_argument("--starts", type=int, default=50, help="of each kind and scene")
    parser.add_argument("--paths", type=int, default=50, help="sequences of each kind")
    parser.add_argument("--pictures", type=int, default=20, help="starts whose pictures are compared")
    parser.add_argument("--renderer", default="tiny", choices=("tiny", "egl"), help="of CALVIN's pictures")
    parser.add_argument("--trials", type=int, default=5, help="of each task and scene")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--worlds", type=int, default=2, help="CALVINs at a time")
    parser.add_argument("--scores", nargs="*", default=[], help="folders that vla-evaluate wrote")
    options = parser.parse_args()
    given = {"starts": "starts", "paths": "paths", "cameras": "pictures", "experts": "trials"}
    for part in options.parts or [name for name in PARTS if name != "scores" or options.scores]:
        count = f" --{given[part]} {getattr(options, given[part])}" if part in given else ""
        scenes = f" --scenes {options.scenes}" if part in ("starts", "experts") else ""
        body = PARTS[part](options)
        put(part, f"`python -m benchmarks.fidelity --parts {part}{count}{scenes}`; {machine()}\n\n{body}")
        print(f"{part}\n\n{body}\n", flush=True)


if __name__ == "__main__":
    main()
