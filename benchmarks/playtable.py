"""Control steps per CPU-second of the playtable, with and without cameras, one world and many.

    python -m benchmarks.playtable

Random actions from random starts, a fresh start every 100 steps; the rows take turns, and the median over the turns is shown.
CPU time counts all threads, so that rates are those of one core and other jobs on the machine hardly matter. The original
(PyBullet, its software renderer), measured on a machine of the same kind, makes 15 steps per CPU-second with cameras of
200x200 and 84x84, and 490 without. The goals are 200 and 2,000. Below the table: what a process that only asks for the 1000
evaluation chains takes, start and imports included, with an empty cache and with a full one; the goal is 20 CPU-seconds, the
original takes 142. Writes benchmarks/results/playtable.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("LP_NUM_THREADS", "0")  # the software OpenGL driver's own threads would only add noise

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import envs.playtable as playtable
from benchmarks.machine import machine
from vla.spec import UserError

CALVIN = {"static": (200, 200), "wrist": (84, 84)}
SMALL = {"static": (96, 96), "wrist": (96, 96)}
FRESH = 100
"""Control steps after which worlds are reset."""
Step = Callable[[], Any]
CHAINS = "import time; from envs.playtable.chains import evaluation_chains as f; f(); print(time.process_time())"


def vector(count: int, cameras: dict[str, tuple[int, int]], states: bool = False, **options: Any) -> Step:
    """A call that steps `count` worlds of all scenes once."""
    world, rng, steps = playtable.make("ABCD", count, cameras, **options), np.random.default_rng(0), iter(range(10**9))

    def step() -> None:
        if next(steps) % FRESH == 0:
            world.reset()
        world.step(rng.uniform(-1, 1, (count, 7)))
        if states:
            world.states()

    return step


def single(cameras: dict[str, tuple[int, int]]) -> Step:
    """The same with one environment of `gymnasium.make`."""
    world, rng, steps = gymnasium.make("playtable/Playtable-v0", cameras=cameras), np.random.default_rng(0), iter(range(10**9))

    def step() -> None:
        if next(steps) % FRESH == 0:
            world.reset()
        world.step(rng.uniform(-1, 1, 7).astype(np.float32))

    return step


def rows() -> dict[tuple[str, str, int], Step]:
    """(cameras, way, worlds) -> a call that steps them all."""
    sizes = {"200x200 + 84x84": CALVIN, "96x96 + 96x96": SMALL, "none": {}}
    found: dict[tuple[str, str, int], Step] = {}
    for name, cameras in sizes.items():
        for count in (1, 32):
            found[name, "", count] = vector(count, cameras)
        found[name, "gymnasium.make", 1] = single(cameras)
        if cameras:
            try:
                found[name, "OpenGL renderer (EGL), shadows as in ours", 1] = vector(1, cameras, renderer="gl")
            except UserError as error:
                print(f"left out: {error}")
        else:
            found[name, "with the tasks' view of every step", 32] = vector(32, cameras, states=True)
    return found


def chains() -> list[float]:
    """CPU-seconds of two processes that ask for the evaluation chains one after the other, sharing a cache that was empty."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", CHAINS]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        outputs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    return [float(output.stdout) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.4, help="of CPU time for each row and turn")
    parser.add_argument("--out", default="benchmarks/results/playtable.md")
    options = parser.parse_args()
    calls = rows()
    rates: dict[tuple[str, str, int], list[float]] = {row: [] for row in calls}
    for step in calls.values():
        step()
    for _ in range(options.turns):
        for row, step in calls.items():
            begin, count = time.process_time(), 0
            while (spent := time.process_time() - begin) < options.seconds:
                step()
                count += row[2]
            rates[row].append(count / spent)
    lines = ["| cameras | worlds | steps per CPU-second | |", "|---|---|---|---|"]
    lines += [
        f"| {cameras} | {count} | {np.median(rates[row]):,.0f} | {way} |" for row in calls for cameras, way, count in [row]
    ]
    first, again = chains()
    lines.append(f"\nThe 1000 evaluation chains: {first:.1f} CPU-seconds the first time, {again:.1f} from the cache.")
    print("\n".join(lines))
    purpose = (__doc__ or "").split("\n\n")
    text = "\n\n".join(
        [
            "# Speed of the playtable",
            purpose[0],
            purpose[2].strip(),
            f"    python -m benchmarks.playtable --turns {options.turns}",
            machine(),
        ]
    )
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(text + "\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
