"""A policy that learns from the scripted experts of a world that lives elsewhere, scored there.

    make worlds NAME=metaworld
    python -m benchmarks.elsewhere metaworld --frames 40000 --cpu-seconds 900 --chains 100

`vla-collect` records the world's experts, `vla-train` trains the policy from nothing on one core, `vla-evaluate` plays every
task from starts that no training had. The same command again goes on where it was stopped. Writes
benchmarks/results/elsewhere.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.recipes import command, publish, run


def score(options: argparse.Namespace) -> dict[str, Any]:
    """What `vla-evaluate` says of the policy, from before if it was asked before."""
    data, out = Path("data") / options.world, Path("runs") / options.world
    if not (out / "score" / "results.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        run(command("collect", f"env={options.world}", f"frames={options.frames}", f"out={data}"), out / "log")
        train = [
            f"policy={options.policy}",
            "policy.augment.swap=0",
            f"data.path={data}",
            "data.cache=data/cache",
            f"out={out}",
        ]
        train += [
            f"trainer.cpu_seconds={options.cpu_seconds}",
            "trainer.threads=1",
            "trainer.batch_size=128",
            "trainer.ema=0.999",
        ]
        run(command("train", *train), out / "log")
        rules = [f"checkpoint={out / 'last'}", f"chains={options.chains}", "videos=4", f"out={out / 'score'}"]
        run(command("evaluate", f"env={options.world}", *rules), out / "log")
    return json.loads((out / "score" / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", help="the word of its env; it must bring experts")
    parser.add_argument("--policy", default="gr1_small")
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--cpu-seconds", type=int, default=900)
    parser.add_argument("--chains", type=int, default=100, help="trials; the tasks take turns")
    options = parser.parse_args()
    result = score(options)
    summary, training = result["summary"], json.loads((Path("runs") / options.world / "last" / "training.json").read_text())
    rate = summary["in_a_row"][0]
    lines = ["| task | solved |", "|---|---|"]
    lines += [f"| {task} | {row['successes']}/{row['attempts']} |" for task, row in summary["tasks"].items()]
    lines.append(f"| **all** | **{100 * rate['value']:.0f} %** [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}] |")
    told = f"{options.policy} on {options.world}: {training['step']} steps in {training['cpu_seconds'] / 60:.0f} CPU-minutes."
    publish("elsewhere", "Elsewhere", __doc__ or "", [told, "", *lines])


if __name__ == "__main__":
    main()
