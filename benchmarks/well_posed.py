"""Whether the experts can be learned from: a small network that sees the true state copies each of them in three CPU-minutes.

    python -m benchmarks.well_posed

For each task a network of its own learns for `--seconds` of CPU time, collecting included: first from the expert's own trials,
disturbed by noise, then in rounds from what it meets itself, with the expert's answers to that. It learns from play in all
four scenes and is tried from fresh starts. Writes benchmarks/results/well_posed.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.experts import rate, trials
from benchmarks.machine import machine
from envs.playtable import layout as L
from envs.playtable.experts import Expert
from envs.playtable.tasks import TASKS
from envs.playtable.world import SCENE
from vla.policy import Memory, Observation
from vla.spec import ENVIRONMENT_STATE, STATE

ROUNDS, COLLECTING = 8, 0.6
"""In so many rounds, and up to this share of the time, trials are collected and learned from by turns; then only learned."""
MAX_STEPS = 150
"""Of a trial that is learned from."""
FRESH = 10**6
"""Seed of the starts that learning never sees."""
ORDERS = np.array([[L.LAYOUTS[s].block_order.index(color) for color in L.BLOCK_NAMES] for s in L.SCENES])
LENGTHS = np.array([[L.LAYOUTS[s].block_size(color)[0] for color in L.BLOCK_NAMES] for s in L.SCENES])


def features(observation: Observation) -> np.ndarray:
    """The true state as (N, F) numbers of about unit size: hand, controls, blocks red, blue, pink as the hand sees them."""
    robot, scene, kind = observation[STATE], observation[ENVIRONMENT_STATE], observation[SCENE]
    rows = np.arange(len(robot))[:, None]
    blocks = scene[:, 6:].reshape(-1, 3, 6)[rows, ORDERS[kind]]
    offset = blocks[..., :3] - robot[:, None, :3]
    turn = blocks[..., 5] - robot[:, 5:6]
    parts = [
        *(5 * robot[:, :3], np.sin(robot[:, 3:6]), np.cos(robot[:, 3:6]), 25 * robot[:, 6:7], robot[:, 14:15]),
        *(10 * scene[:, :4], scene[:, 4:6], np.eye(4)[kind], 25 * LENGTHS[kind]),
        *(5 * blocks[..., :3], 5 * offset, np.tanh(50 * offset), np.sin(blocks[..., 3:]), np.cos(blocks[..., 3:])),
        *(np.sin(2 * turn), np.cos(2 * turn), np.sin(4 * turn), np.cos(4 * turn)),
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
        self.net = nn.Sequential(
            nn.LazyLinear(size),
            nn.GELU(),
            nn.Linear(size, size),
            nn.GELU(),
            nn.Linear(size, size),
            nn.GELU(),
            nn.Linear(size, 7),
        )
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
            own = self.net(torch.from_numpy(seen)).numpy().clip(-1, 1)
        if self.teach:
            taught = answer.copy()
            bent = self.rng.random(len(answer)) < 0.3
            taught[bent, :6] += self.rng.normal(0, 0.8, (int(bent.sum()), 6))
            own = np.where(self.rng.random((len(own), 1)) < self.teach, taught, own)
        return own[:, None].astype(np.float32), memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory

    def learn(self, seconds: float, rate: float = 1e-3) -> None:
        """Regress on all that was kept for some CPU time, at a learning rate that falls linearly to a fiftieth."""
        inputs, answers = (torch.from_numpy(np.concatenate(kept)) for kept in (self.inputs, self.answers))
        self.net(inputs[:1])
        self.optimiser = self.optimiser or torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-4)
        begin = time.process_time()
        while (spent := (time.process_time() - begin) / seconds) < 1:
            self.optimiser.param_groups[0]["lr"] = rate * (1 - 0.98 * spent)
            rows = torch.from_numpy(self.rng.integers(0, len(inputs), 512))
            told, wanted = self.net(inputs[rows]), answers[rows]
            grip = nn.functional.softplus(-3 * told[:, 6] * wanted[:, 6]).mean()  # only its sign is heard
            loss = nn.functional.smooth_l1_loss(told[:, :6], wanted[:, :6], beta=0.1) + 0.3 * grip
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()


def learn(task: str, seconds: float, size: int, seed: int) -> Student:
    """A student of one task after `seconds` of CPU time."""
    student = Student(size, seed)
    begin = time.process_time()

    def left(share: float) -> float:
        return share * seconds - (time.process_time() - begin)

    for turn in range(ROUNDS):
        student.teach, number = 1.0 if turn == 0 else 0.3 if turn == 1 else 0.0, 0
        while left(COLLECTING * (turn + 0.6) / ROUNDS) > 0:
            list(trials(student, [task], L.SCENES[number % 4], 8, seed + 1 + turn + ROUNDS * number, MAX_STEPS))
            number += 1
        student.learn(left(COLLECTING * (turn + 1) / ROUNDS))
    student.learn(left(1.0))
    student.teach, student.keep = 0.0, False
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--seconds", type=float, default=180.0, help="of CPU time for each task")
    parser.add_argument("--size", type=int, default=256, help="width of the network's three layers")
    parser.add_argument("--starts", type=int, default=25, help="fresh starts in each scene")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/well_posed.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| task | solved, per cent | frames learned from |", "|---|---|---|"]
    print("\n".join(lines))
    rates = []
    for task in options.tasks:
        student = learn(task, options.seconds, options.size, options.seed)
        rates.append(rate(list(trials(student, [task], starts=options.starts, seed=FRESH + options.seed))))
        lines.append(f"| {task} | {rates[-1]:.0f} | {sum(map(len, student.inputs)):,} |")
        print(lines[-1], flush=True)
    lines.append(f"| **least** | {min(rates):.0f} | |\n| **mean** | {np.mean(rates):.1f} | |")
    print(lines[-1])
    command = f"python -m benchmarks.well_posed --seconds {options.seconds:g} --starts {options.starts} --seed {options.seed}"
    purpose = (__doc__ or "").split("\n\n")
    text = "\n\n".join(["# Experts can be learned from", purpose[0], purpose[2].strip(), f"    {command}", machine()])
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(text + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
