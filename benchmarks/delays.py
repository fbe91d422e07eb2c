"""What a slow policy costs, and what the way of joining its chunks saves: success on the playtable's chains and the jerk of the
hand's path under added inference delay.

    vla-train head@policy.head=flow policy.chunk=20 init_from=checkpoints/gr1_small data.path=data/abc data.cache=data/cache \\
        out=runs/flow trainer.batch_size=128 trainer.ema=0.999 trainer.minutes=60
    python -m benchmarks.delays checkpoints/gr1_small runs/flow/last --chains 200

Everything is simulated, so that no clock has a say: what is asked at control step k arrives at step k + d, d the delay in
whole control steps of 1/30 s, and one question waits for the answer to the last. Until then the plan goes on; where it is at
its end, the arm holds. `receding` switches to a new chunk as soon as it is there, `ensemble` averages all that reach a step
(asked as often as it answers), `realtime` lets the policy continue the plan, which takes a flow head. A delay near the length
of a chunk leaves nothing of it to execute: train longer chunks for it.

Jerk is the third difference of the hand's position (m) at the control rate, of the whole path of a chain: the largest of all
chains, and the median over chains of the largest in each. Writes benchmarks/results/delays.md, row by row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from benchmarks.machine import machine
from envs.playtable.scene import CONTROL_HZ
from vla.checkpoint import load_policy
from vla.evaluation.long_horizon import play_chain
from vla.evaluation.statistics import bootstrap_mean
from vla.parallel import spread
from vla.rollout import Job, Script, Timing, delay_steps, rollout
from vla.training.logging import available_cores

EXECUTORS = ("receding", "ensemble", "realtime")
HEAD = [
    "| checkpoint | added delay, ms | control steps | executor | average length | largest jerk, m/s^3 "
    "| median of chains' largest | steps held |",
    "|---|---|---|---|---|---|---|---|",
]


def jerks(path: np.ndarray, hz: float) -> np.ndarray:
    """Third differences of a path (T, 3) in metres as magnitudes (T - 3,) in m/s^3."""
    return np.linalg.norm(np.diff(path, 3, axis=0), axis=1) * hz**3


def watched(script: Script, look: Callable[[], np.ndarray], path: list[np.ndarray]) -> Script:
    """`script`, with what `look` gives after each of its steps added to `path`."""
    command = next(script)
    while True:
        state = yield command
        path.append(look())
        try:
            command = script.send(state)
        except StopIteration as end:
            return end.value


def play(share: tuple[str, Sequence[str], Sequence[int]]) -> Iterator[tuple[str, Any]]:
    """One process's chains: ("chain", (solved, largest jerk)) for each, and ("end", Timing)."""
    checkpoint, overrides, numbers = share
    torch.set_num_threads(1)
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("evaluate", overrides=["out=nowhere", *overrides])
    policy, benchmark, executor = load_policy(checkpoint), instantiate(config.env.benchmark), instantiate(config.executor)
    sizes = {name: list(size) for name, size in policy.spec.cameras.items()}
    worlds = min(config.env.world.num_worlds, len(numbers))
    world = instantiate(config.env.world, cameras=sizes, num_worlds=worlds, _convert_="all")
    chains, waiting, paths = benchmark.chains(), iter(numbers), {}

    def next_job(i: int) -> Job | None:
        if (number := next(waiting, None)) is None:
            return None
        paths[number] = []
        script = play_chain(number, chains[number], benchmark, [], config.split, config.seed)
        return Job(number, watched(script, lambda: world.robot_obs[i, :3].copy(), paths[number]))

    timing = Timing()
    for job, attempts in rollout(world, policy, next_job, executor, timing, config.delay_ms / 1e3):
        jerk = jerks(np.array(paths.pop(job.key)), world.vla_spec.control_hz)
        yield "chain", (sum(a["solved"] for a in attempts), float(jerk.max(initial=0.0)))
    yield "end", timing
    world.close()


def measure(checkpoint: str, executor: str, delay_ms: float, options: argparse.Namespace) -> str:
    """The table's row of one setting."""
    execute = 1 if executor == "ensemble" else options.execute
    overrides = [f"executor={executor}", f"execute={execute}", f"delay_ms={delay_ms:g}", f"seed={options.seed}"]
    workers = min(options.workers or available_cores(), options.chains)
    found, timing = [], Timing()
    for kind, value in spread(play, [(checkpoint, overrides, range(k, options.chains, workers)) for k in range(workers)]):
        if kind == "chain":
            found.append(value)
        else:
            timing.add(value)
    solved, largest = zip(*found, strict=True)
    mean, steps = bootstrap_mean(solved), delay_steps(delay_ms / 1e3, CONTROL_HZ)
    return (
        f"| {checkpoint} | {delay_ms:g} | {steps} | {executor} | {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] "
        f"| {max(largest):.0f} | {np.median(largest):.0f} | {100 * timing.held / timing.steps:.1f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="folders of trained policies")
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 50, 100, 200, 300], help="milliseconds")
    parser.add_argument("--executors", nargs="*", default=EXECUTORS, choices=EXECUTORS)
    parser.add_argument("--execute", type=int, default=5, help="actions between two questions, but for the ensemble: 1")
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/delays.md"))
    options = parser.parse_args()
    purpose = (__doc__ or "").split("\n\n")
    command = f"python -m benchmarks.delays {' '.join(sys.argv[1:])}"
    rows = []
    print("\n".join(HEAD))
    for checkpoint in options.checkpoints:
        continues = getattr(load_policy(checkpoint), "continues", False)
        for delay_ms in options.delays:
            for executor in options.executors:
                if executor == "realtime" and not continues:
                    continue
                rows.append(measure(checkpoint, executor, delay_ms, options))
                print(rows[-1], flush=True)
                about = ["# Inference delay", purpose[0], *(part.strip() for part in purpose[2:]), f"    {command}", machine()]
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text("\n\n".join(about) + "\n\n" + "\n".join([*HEAD, *rows]) + "\n")


if __name__ == "__main__":
    main()
