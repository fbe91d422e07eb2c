"""How well the controller keeps time: the simulated robot at 30 Hz with the shipped policy, with and without another process
that keeps one core busy.

    python -m benchmarks.control --seconds 600
    python -m benchmarks.control --seconds 60 --delays 0 50 100 200 300    # the largest jerk under added inference delay

The largest jerk is that of the hand's measured path over the recording, third differences at the control rate, for the ways
to join chunks that the shipped policy can use. benchmarks/delays.py measures the same without a clock, and success with it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module

from benchmarks.machine import machine
from vla.control.run import run
from vla.data.store import Dataset
from vla.spec import STATE

RESULTS = Path(__file__).parent / "results" / "control.md"


def spin() -> None:
    while True:
        pass


def drive(seconds: float, busy: bool, *overrides: str) -> tuple[dict[str, Any], Dataset]:
    """One session of about so many seconds; its table and recording."""
    with initialize_config_module("conf", version_base="1.3"):
        out = tempfile.mkdtemp(prefix="control-")
        config = compose("control", overrides=[f"out={out}", *overrides])
    config.seconds = seconds / len(config.instructions)
    other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    if busy:
        other.start()
    try:
        table = run(config, keyboard=None)
    finally:
        if busy:
            other.kill()
    return table, Dataset(f"{out}/recording")


def jerk(dataset: Dataset) -> float:
    """The largest third derivative of the hand's measured position in any episode, m/s^3."""
    hz = dataset.spec.control_hz or 0.0
    worst = 0.0
    for start, end in zip(dataset.episode_starts, dataset.episode_ends, strict=True):
        path = dataset.vectors[STATE][start:end, :3]
        if len(path) > 3:
            worst = max(worst, float(np.linalg.norm(np.diff(path, 3, axis=0), axis=1).max()) * hz**3)
    return worst


def cadence_row(name: str, table: dict[str, Any]) -> str:
    times = table["milliseconds"]
    cells = [f"{times[part]['p50']:.2f} / {times[part]['p99']:.2f} / {times[part]['worst']:.2f}" for part in COLUMNS]
    share = 100 * table["missed"] / max(1, table["cycles"] + table["missed"])
    return f"| {name} | {table['hz']:.3f} | {share:.3f} % | {' | '.join(cells)} |"


COLUMNS = ("lateness", "sensing", "inference", "reaction", "command")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="per row of the cadence table")
    parser.add_argument("--delays", type=float, nargs="*", default=[], help="milliseconds of added inference delay")
    parser.add_argument("--delay-seconds", type=float, default=60.0, help="per row of the table of delays")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [
        "Milliseconds p50 / p99 / worst, by `python -m benchmarks.control`:",
        "",
        f"| | Hz | missed | {' | '.join(COLUMNS)} |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, busy in (("alone", False), ("another process busy", True)):
        rows.append(cadence_row(name, drive(args.seconds, busy)[0]))
        print(rows[-1], flush=True)
    if args.delays:
        rows += ["", "| added delay, ms | executor | largest jerk, m/s^3 | cycles held |", "|---|---|---|---|"]
    for delay in args.delays:
        for join in ("receding", "ensemble"):
            _, dataset = drive(args.delay_seconds, False, f"delay_ms={delay}", f"executor={join}")
            held = dataset.parts[0].group["control/held"][:]
            rows.append(f"| {delay:g} | {join} | {jerk(dataset):.1f} | {100 * float(np.mean(held)):.1f} % |")  # type: ignore
            print(rows[-1], flush=True)
    args.out.write_text("\n".join([*rows, "", machine(), ""]))


if __name__ == "__main__":
    main()
