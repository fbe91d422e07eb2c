"""How well the controller keeps time: vla-control with the simulated robot at 30 Hz and the shipped policy, alone, with another
process that keeps one core busy, and with that and a Rerun recording beside the dataset.

    python -m benchmarks.control --seconds 600
    python -m benchmarks.control --seconds 600 --rows busy
    python -m benchmarks.control --seconds 60 --delays 0 50 100 200 300    # the largest jerk under added inference delay

Every row is the command itself, as a person starts it; the robot's instructions are followed for TURN_S each, again and again,
and a session that ended before its time is an error. The largest jerk is that of the hand's measured path over the recording,
third differences at the control rate, for the ways to join chunks that the shipped policy can use. benchmarks/delays.py
measures the same without a clock, and success with it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module

from benchmarks.machine import machine
from vla.data.store import Dataset
from vla.spec import STATE

RESULTS = Path(__file__).parent / "results" / "control.md"
TURN_S = 12.0
COLUMNS = ("lateness", "sensing", "inference", "reaction", "command")
ROWS = {
    "alone": ("alone", False),
    "busy": ("another process busy", True),
    "viewed": ("another process busy, view=name.rrd", True, "view={folder}/seen.rrd"),
}
"""Name, whether another process keeps a core busy, overrides."""
USUAL = ("started", "instruction", "instruction_over", "ended", "over")
"""Events that are no faults."""


def spin() -> None:
    while True:
        pass


@contextmanager
def drive(seconds: float, busy: bool, *overrides: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """One session of so many seconds: its table, and its folder while the context lasts."""
    with initialize_config_module("conf", version_base="1.3"):
        sentences = list(compose("control", overrides=list(overrides)).instructions)
    turns = ceil(seconds / TURN_S)
    following = [sentences[k % len(sentences)] for k in range(turns)]
    other = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    with tempfile.TemporaryDirectory(prefix="control-") as folder:
        settings = [f"out={folder}", f"hydra.run.dir={folder}/hydra", f"seconds={seconds / turns}", "robot.check=null"]
        command = [sys.executable, "-m", "vla.commands.control", *settings, f"instructions={json.dumps(following)}", *overrides]
        if busy:
            other.start()
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        finally:
            if busy:
                other.kill()
        table = json.loads(Path(folder, "cadence.json").read_text())
        if table["ended"] != "all instructions are done":
            raise RuntimeError(f"the session ended early ({table['ended']}): see its events above")
        yield table, Path(folder)


def jerk(dataset: Dataset) -> float:
    """The largest third derivative of the hand's measured position in any episode, m/s^3."""
    hz = dataset.spec.control_hz or 0.0
    worst = 0.0
    for start, end in zip(dataset.episode_starts, dataset.episode_ends, strict=True):
        path = dataset.vectors[STATE][start:end, :3]
        if len(path) > 3:
            worst = max(worst, float(np.linalg.norm(np.diff(path, 3, axis=0), axis=1).max()) * hz**3)
    return worst


def cadence_row(name: str, table: dict[str, Any], folder: Path) -> str:
    times = table["milliseconds"]
    cells = [f"{times[part]['p50']:.2f} / {times[part]['p99']:.2f} / {times[part]['worst']:.2f}" for part in COLUMNS]
    share = 100 * table["missed"] / (table["cycles"] + table["missed"])
    faults = ", ".join(f"{count} {event}" for event, count in table["events"].items() if event not in USUAL) or "none"
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    started = next(event for event in told if event["event"] == "started")
    figures = f"{started['priority']} | {table['seconds']:.0f} | {table['hz']:.3f} | {table['missed']} ({share:.3f} %)"
    return f"| {name} | {figures} | {' | '.join(cells)} | {faults} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="per row of the cadence table")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS, help="of the cadence table")
    parser.add_argument("--delays", type=float, nargs="*", default=[], help="milliseconds of added inference delay")
    parser.add_argument("--delay-seconds", type=float, default=60.0, help="per row of the table of delays")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [
        f"| | priority | seconds | Hz | missed cycles | {' | '.join(COLUMNS)} | events beside the usual |",
        "|---|---|---|---|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    with tempfile.TemporaryDirectory(prefix="control-view-") as shown:
        for row in args.rows:
            name, busy, *more = ROWS[row]
            with drive(args.seconds, busy, *(override.format(folder=shown) for override in more)) as (table, folder):
                rows.append(cadence_row(name, table, folder))
            print(rows[-1], flush=True)
    if args.delays:
        rows += ["", "| added delay, ms | executor | largest jerk, m/s^3 | cycles held |", "|---|---|---|---|"]
    for delay in args.delays:
        for join in ("receding", "ensemble"):
            with drive(args.delay_seconds, False, f"delay_ms={delay}", f"executor={join}") as (_, folder):
                dataset = Dataset(folder / "recording")
                held = np.asarray(dataset.parts[0].group["control/held"][:])  # pyright: ignore
                rows.append(f"| {delay:g} | {join} | {jerk(dataset):.1f} | {100 * float(np.mean(held)):.1f} % |")
            print(rows[-1], flush=True)
    head = f"Milliseconds p50 / p99 / worst, by `python -m benchmarks.control {' '.join(sys.argv[1:])}`; {machine()}."
    args.out.write_text("\n".join(["# Control", "", head, "", *rows, ""]))


if __name__ == "__main__":
    main()
