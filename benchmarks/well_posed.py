"""Whether the experts can be learned from: a small network that sees the true state copies each of them in three CPU-minutes.

    python -m benchmarks.well_posed --jobs 2

For each task a network of its own learns for `--seconds` of CPU time at most, collecting included: first from the expert's own
trials, disturbed by noise, then in rounds from what it meets itself, with the expert's answers to that. It learns from play in
all four scenes. Where a round's own trials go well, it is checked from ten fresh starts in each scene; if it solves 37 of
these 40 it learns no more, so that the time used may be less. Checks are counted in the time. The score is from `--starts`
other fresh starts in each scene, which neither learning nor checks have seen, and is not counted.

Each task's row is kept in `--rows` as it is made: the same command again goes on with the tasks that lack one. `--jobs`
processes take the tasks by turns. Writes benchmarks/results/well_posed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.experts import rate, trials
from benchmarks.machine import machine
from envs.playtable import layout as L
from envs.playtable.experts import Expert
from envs.playtable.tasks import TASKS
from envs.playtable.world import SCENE
from vla.parallel import spread
from vla.policy import Memory, Observation
from vla.spec import ENVIRONMENT_STATE, STATE, UserError
from vla.training.logging import write_json

ROUNDS, COLLECTING, TRIALS = 8, 0.75, 0.7
"""In so many rounds, and up to a share of the time, trials are collected and learned from by turns; then only learned. TRIALS
is the collecting's share of a round."""
MAX_STEPS = 150
"""Of a trial that is learned from."""
FRESH, CHECK = 10**6, 2 * 10**6
"""Seeds of the starts of the score and of the checks, which learning never sees."""
GOAL = 80.0
"""Per cent of its own trials in a round at which a student is checked."""
ENOUGH, CHECK_STARTS = 92.5, 10
"""It learns no more if it solves so many per cent of the check's starts, of which there are so many in each scene. Above the
goal, as forty trials may flatter by some per cent."""
GRIP, SURER = 3.0, 3.0
"""The network's last output times the first are the logarithmic odds of open. The gripper bit is drawn with these times the
second: often enough to get over a doubt, so seldom otherwise that a block is carried to its goal."""
ORDERS = np.array([[L.LAYOUTS[s].block_order.index(color) for color in L.BLOCK_NAMES] for s in L.SCENES])
LENGTHS = np.array([[L.LAYOUTS[s].block_size(color)[0] for color in L.BLOCK_NAMES] for s in L.SCENES])
LONG = np.minimum((LENGTHS - 0.04) / 0.016, 1.0)
"""Of each block: 0 where its sides are alike, so that a quarter turn changes nothing, 1 where half a turn is needed."""
CONTROLS = np.array(
    [
        [[s.door_left + L.DOOR_WIDTH / 2, -0.012, 0.522], [s.drawer_x, -0.207, 0.366]]
        + [[s.button_x, s.button_y, 0.47], [s.switch_x, -0.017, 0.54]]
        for s in L.LAYOUTS.values()
    ]
)
"""Where the handles, the button and the lever are in each scene while their joints are at 0, metres."""
WAYS = np.array([[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, np.cos(L.SLOPE_ANGLE), np.sin(L.SLOPE_ANGLE)]])
CABINETS = np.array([s.cabinet_x for s in L.LAYOUTS.values()])


def features(observation: Observation) -> np.ndarray:
    """The true state as (N, F) numbers of about unit size: the hand, the controls as the hand sees them, and blocks, once by
    colour (red, blue, pink) and once by nearness to the hand, as the hand, door, cabinet and the nearest block see them."""
    robot, scene, kind = observation[STATE], observation[ENVIRONMENT_STATE], observation[SCENE]
    rows = np.arange(len(robot))[:, None]
    blocks = scene[:, 6:].reshape(-1, 3, 6)[rows, ORDERS[kind]]
    away = blocks[..., :3] - robot[:, None, :3]
    order = np.argsort(np.linalg.norm(away, axis=-1), axis=1)
    controls = CONTROLS[kind] + WAYS * scene[:, :4, None]
    reach = controls - robot[:, None, :3]
    parts = [
        *(5 * robot[:, :3], np.sin(robot[:, 3:6]), np.cos(robot[:, 3:6]), 25 * robot[:, 6:7], robot[:, 14:15]),
        *(10 * scene[:, :4], scene[:, 4:6], np.eye(4)[kind], 5 * reach, np.tanh(50 * reach)),
    ]
    for which in (np.broadcast_to(np.arange(3), order.shape), order):
        block, offset, length, long = (
            blocks[rows, which],
            away[rows, which],
            LENGTHS[kind][rows, which],
            LONG[kind][rows, which],
        )
        angles = (block[..., 5], block[..., 5] - robot[:, 5:6])
        halves = [f(2 * angle) for angle in angles for f in (np.sin, np.cos)]
        quarters = [f(4 * angle) for angle in angles for f in (np.sin, np.cos)]
        indoors = np.stack([block[..., 0] - controls[:, :1, 0], block[..., 0] - CABINETS[kind][:, None]])
        apart = block[:, 1:, :3] - block[:, :1, :3]
        parts += [
            *(25 * length, 5 * block[..., :3], np.sin(block[..., 3:]), np.cos(block[..., 3:])),
            *(5 * offset, np.tanh(50 * offset), 5 * apart, np.tanh(50 * apart), *(5 * indoors), *np.tanh(25 * indoors)),
            *(*halves, *quarters, *(long * half for half in halves), *((1 - long) * quarter for quarter in quarters)),
        ]
    return np.concatenate([np.reshape(part, (len(robot), -1)) for part in parts], axis=1).astype(np.float32)


class Student:
    """The network as a policy that also keeps what it meets, with the expert's answers.

    teach: the chance that a control step is the expert's, disturbed, instead of the network's.
    """

    history = False

    def __init__(self, size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.expert, self.rng = Expert(), np.random.default_rng(seed)
        self.spec = self.expert.spec
        layers = [layer for _ in range(3) for layer in (nn.LazyLinear(size), nn.LayerNorm(size), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(size, 7))
        self.optimiser: torch.optim.Optimizer | None = None
        self.teach, self.keep = 1.0, True
        self.inputs: list[np.ndarray] = []
        self.answers: list[np.ndarray] = []

    def begin(self, seeds: Sequence[int]) -> Memory:
        return None

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        seen = features(observation)
        if self.keep:
            answer = self.expert.act(observation, None)[0][:, 0]
            self.inputs.append(seen)
            self.answers.append(answer)
        with torch.no_grad():
            told = self.net(torch.from_numpy(seen)).numpy()
        own = told.clip(-1, 1)
        own[:, 6] = np.where(SURER * GRIP * told[:, 6] > self.rng.logistic(size=len(own)), 1, -1)
        if self.teach:
            taught = answer.copy()
            bent = self.rng.random(len(answer)) < 0.3
            taught[bent, :6] += self.rng.normal(0, 0.8, (int(bent.sum()), 6))
            own = np.where(self.rng.random((len(own), 1)) < self.teach, taught, own)
        return own[:, None].astype(np.float32), memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory

    def learn(self, seconds: float, rate: float = 4e-3) -> None:
        """Regress on all that was kept for some CPU time, at a learning rate that falls linearly to a fiftieth."""
        inputs, answers = (torch.from_numpy(np.concatenate(kept)) for kept in (self.inputs, self.answers))
        self.net(inputs[:1])
        self.optimiser = self.optimiser or torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-4)
        begin = time.process_time()
        while (spent := (time.process_time() - begin) / seconds) < 1:
            self.optimiser.param_groups[0]["lr"] = rate * (1 - 0.98 * spent)
            rows = torch.from_numpy(self.rng.integers(0, len(inputs), 256))
            told, wanted = self.net(inputs[rows]), answers[rows]
            grip = nn.functional.softplus(-GRIP * told[:, 6] * wanted[:, 6]).mean()
            loss = nn.functional.smooth_l1_loss(told[:, :6], wanted[:, :6], beta=0.1) + 0.3 * grip
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()


class Learnt(NamedTuple):
    """A student, the CPU time that it took in seconds, and the last check's per cent (None if there was none)."""

    student: Student
    seconds: float
    checked: float | None


def learn(task: str, seconds: float, size: int, seed: int) -> Learnt:
    """A student of one task after `seconds` of CPU time, or after less where it passes a check."""
    student, checked = Student(size, seed), None
    begin = time.process_time()

    def left(share: float) -> float:
        return share * seconds - (time.process_time() - begin)

    for turn in range(ROUNDS):
        student.teach, number, own = 1.0 if turn == 0 else 0.3 if turn == 1 else 0.0, 0, []
        while left(COLLECTING * (turn + TRIALS) / ROUNDS) > 0:
            own += trials(student, [task], L.SCENES[number % 4], 8, seed + 1 + turn + ROUNDS * number, MAX_STEPS)
            number += 1
        student.learn(left(COLLECTING * (turn + 1) / ROUNDS))
        if not student.teach and own and rate(own) >= GOAL:
            checked = tried(student, task, CHECK_STARTS, CHECK + seed)
            if checked >= ENOUGH:
                break
    else:
        student.learn(left(1.0))
    return Learnt(student, time.process_time() - begin, checked)


def tried(student: Student, task: str, starts: int, seed: int) -> float:
    """Per cent of fresh starts that the student solves by itself; it keeps nothing of what it meets there."""
    teach, keep, student.teach, student.keep = student.teach, student.keep, 0.0, False
    solved = rate(list(trials(student, [task], starts=starts, seed=seed)))
    student.teach, student.keep = teach, keep
    return solved


def measure(share: tuple[Sequence[str], dict[str, Any], str]) -> Iterator[dict[str, Any]]:
    """One process's tasks: the row of each, which is kept in a file of its own before the next is begun."""
    tasks, settings, folder = share
    torch.set_num_threads(1)
    for task in tasks:
        learnt = learn(task, settings["seconds"], settings["size"], settings["seed"])
        row = {
            "task": task,
            "settings": settings,
            "solved": tried(learnt.student, task, settings["starts"], FRESH + settings["seed"]),
            "seconds": learnt.seconds,
            "checked": learnt.checked,
            "frames": sum(map(len, learnt.student.inputs)),
        }
        write_json(Path(folder, f"{task}.json"), row)
        yield row


def kept(folder: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows in `folder` by task; UserError where one was made under other settings."""
    rows = {}
    for file in sorted(Path(folder).glob("*.json")):
        row = json.loads(file.read_text())
        if row["settings"] != settings:
            raise UserError(f"{file} was made with {row['settings']}, now it is {settings}: give the same, or another --rows.")
        rows[row["task"]] = row
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in markdown."""
    checked = "" if row["checked"] is None else f"{row['checked']:.0f}"
    return f"| {row['task']} | {row['solved']:.0f} | {row['seconds']:.0f} | {row['frames']:,} | {checked} |"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in markdown, with the least and the mean."""
    solved = [row["solved"] for row in rows]
    under = sum(rate < GOAL for rate in solved)
    lines = ["| task | solved, per cent | CPU-seconds used | frames learned from | last check, per cent |", "|---" * 5 + "|"]
    lines += map(line, rows)
    lines.append(f"| **least, most** | {min(solved):.0f} | {max(row['seconds'] for row in rows):.0f} | | |")
    lines.append(f"| **mean** | {np.mean(solved):.1f} | {np.mean([row['seconds'] for row in rows]):.0f} | | |")
    return "\n".join(lines) + f"\n\n{len(rows)} of the {len(TASKS)} tasks; {under} of them below {GOAL:.0f} %."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--seconds", type=float, default=180.0, help="of CPU time for each task")
    parser.add_argument("--size", type=int, default=256, help="width of the network's three layers")
    parser.add_argument("--starts", type=int, default=25, help="fresh starts in each scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    parser.add_argument("--rows", default="runs/well_posed", help="folder that keeps each task's row")
    parser.add_argument("--out", default="benchmarks/results/well_posed.md")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("seconds", "size", "starts", "seed")}
    try:
        rows = kept(options.rows, settings)
    except UserError as error:
        parser.error(str(error))
    Path(options.rows).mkdir(parents=True, exist_ok=True)
    missing = [task for task in options.tasks if task not in rows]
    print(f"{len(options.tasks) - len(missing)} of {len(options.tasks)} tasks are in {options.rows} already", flush=True)
    jobs = max(1, min(options.jobs, len(missing)))
    for row in spread(measure, [(missing[k::jobs], settings, options.rows) for k in range(jobs)]):
        rows[row["task"]] = row
        print(line(row), flush=True)
    found = table([rows[task] for task in options.tasks])
    print(found)
    command = f"python -m benchmarks.well_posed --seconds {options.seconds:g} --starts {options.starts} --seed {options.seed}"
    purpose = (__doc__ or "").split("\n\n")
    text = "\n\n".join(["# Experts can be learned from", purpose[0], purpose[2].strip(), f"    {command}", machine(), found])
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
