"""What the parts of F1 are worth: its stages and its plan, each changed in one thing, beside GR-1 at the same budget.

    python -m benchmarks.f1 data/abc --video data/droid --cpu-seconds 1800 --chains 400

One image tokenizer is trained first, for all rows and outside their budget. A row's stages share its budget of CPU time on one
core (a fifth, two fifths and two fifths; a stage left out leaves its share to the next), GR-1 has all of it for one. Every row
is scored by `vla-evaluate` on scene D. The rows `steps_*` are the weights of `f1`, which acts with so many steps of its flow.
The same command again goes on where it was stopped. Writes benchmarks/results/f1.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.recipes import BATCH, publish, run

SHARES = {1: 0.2, 2: 0.4, 3: 0.4}


@dataclass(frozen=True)
class Row:
    """What differs from F1: a word about it, the stages it passes, their overrides; those of acting, on another's weights."""

    what: str
    stages: Sequence[int] = (1, 2, 3)
    overrides: Sequence[str] = ()
    policy: str = "f1_small"
    weights_of: str | None = None
    acting: Sequence[str] = ()


ROWS = {
    "f1": Row("three stages, four scales foreseen, 4 steps of the flow"),
    "no_generation": Row("no generation expert", (2, 3), ["policy.foresight.scales=0"]),
    "frozen_generation": Row(
        "the generation expert stays as stage 1 left it", overrides=["policy.trained=[understanding,action]"]
    ),
    "no_stage_2": Row("no second stage", (1, 3)),
    "scales_2": Row("two scales foreseen", overrides=["policy.foresight.scales=2"]),
    "scales_6": Row("six scales foreseen", overrides=["policy.foresight.scales=6"]),
    "scales_7": Row("all seven scales foreseen", overrides=["policy.foresight.scales=7"]),
    "steps_1": Row("1 step of the flow", weights_of="f1", acting=["+override.flow.steps=1"]),
    "steps_2": Row("2 steps", weights_of="f1", acting=["+override.flow.steps=2"]),
    "steps_10": Row("10 steps", weights_of="f1", acting=["+override.flow.steps=10"]),
    "gr1": Row("gr1_small", (3,), policy="gr1_small"),
}


def budgets(row: Row, seconds: float) -> dict[int, float]:
    """Stage -> CPU-seconds: the stages' shares, and what is left out goes to the next that is there."""
    given, saved = {}, 0.0
    for stage, share in SHARES.items():
        saved += share
        if stage in row.stages:
            given[stage], saved = saved * seconds, 0.0
    return given


def train(row: Row, out: Path, tokenizer: Path, options: argparse.Namespace) -> None:
    """Pass the stages; each goes on where it was stopped."""
    start = tokenizer
    for stage, seconds in budgets(row, options.cpu_seconds).items():
        command = ["vla.commands.pretrain" if stage == 1 else "vla.commands.train"]
        command += [f"experiment=f1_stage{stage}"] if row.policy == "f1_small" else [f"policy={row.policy}"]
        command += [f"data.path={options.video if stage == 1 else options.data}", f"out={out / f'stage{stage}'}"]
        command += [*common(options, seconds), *(row.overrides if stage > 1 else [])]
        if row.policy == "f1_small":
            command += [f"init_from={start}"]
        run([sys.executable, "-m", *command], out / "log")
        start = out / f"stage{stage}" / "last"


def common(options: argparse.Namespace, seconds: float) -> list[str]:
    settings = [f"batch_size={BATCH}", "ema=0.999", "threads=1", "picture_every=null", "validate_every=null", "save_every=500"]
    cache = [f"data.cache={options.cache}"] if options.cache else []
    return [f"trainer.cpu_seconds={seconds:g}", *(f"trainer.{s}" for s in settings), *cache]


def measure(name: str, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one row unless that was done before."""
    row, out = ROWS[name], Path(options.out) / name
    out.mkdir(parents=True, exist_ok=True)
    results = out / "D" / "results.json"
    trained = Path(options.out) / (row.weights_of or name) / "stage3" / "last"
    if not results.exists():
        if row.weights_of is None:
            train(row, out, tokenizer, options)
        score = [f"checkpoint={trained}", f"chains={options.chains}", "videos=2", "workers=1", f"out={out / 'D'}", *row.acting]
        run([sys.executable, "-m", "vla.commands.evaluate", *score], out / "log")
    training = [json.loads(file.read_text()) for file in sorted(trained.parents[1].glob("stage*/last/training.json"))]
    return {"name": name, "training": training, "result": json.loads(results.read_text())}


def line(measured: Mapping[str, Any]) -> str:
    """A row of the table."""
    summary, timing = measured["result"]["summary"], measured["result"]["timing"]
    length, training = summary["average_length"], measured["training"]
    windows, minutes = sum(t["step"] for t in training) * BATCH, sum(t["cpu_seconds"] for t in training) / 60
    ratios = " / ".join(f"{c} {ratio['ratio']:.2f}" for c, ratio in summary["foresight"].items()) or "-"
    return (
        f"| {measured['name']} | {ROWS[measured['name']].what} | {windows:,} "
        f"| {minutes:.0f} "
        f"| {length['value']:.2f} [{length['low']:.2f}, {length['high']:.2f}] "
        f"| {ratios} | {timing['policy_ms_per_query']:.1f} | {timing['all_ms_per_step']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="play in scenes A, B and C")
    parser.add_argument("--video", required=True, help="a dataset of clips, for the first stage")
    parser.add_argument("--cache", help="folder for frames, as data.cache")
    parser.add_argument("--tokenizer", help="checkpoint of a trained tokenizer; without it one is trained")
    parser.add_argument("--tokenizer-seconds", type=float, default=900.0, help="CPU time of its training")
    parser.add_argument("--cpu-seconds", type=float, default=1800.0, help="of all stages of a row")
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2, help="rows at the same time")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="only these")
    parser.add_argument("--out", default="runs/f1")
    options = parser.parse_args()
    tokenizer = Path(options.tokenizer or f"{options.out}/tokenizer/last")
    if not options.tokenizer:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        asked = ["policy=f1_tokenizer", "data=play", f"data.path={options.data}", "data.segments=all"]
        asked += [f"out={tokenizer.parent}", *common(options, options.tokenizer_seconds)]
        run([sys.executable, "-m", "vla.commands.pretrain", *asked], Path(options.out) / "tokenizer.log")
    lines = ["| row | what it is | windows | CPU-minutes | average length | foresight | ms per query | ms per control step |"]
    lines.append("|---" * 8 + "|")
    print("\n".join(lines))
    first = [name for name in options.rows if ROWS[name].weights_of is None]
    with ThreadPoolExecutor(options.jobs) as pool:
        for names in (first, [name for name in options.rows if name not in first]):
            for measured in pool.map(lambda name: measure(name, tokenizer, options), names):
                lines.append(line(measured))
                print(lines[-1], flush=True)
    publish("f1", "F1", __doc__ or "", lines)


if __name__ == "__main__":
    main()
