"""Moving to an unseen scene with few demonstrations: training all parameters, or low-rank matrices alone.

    python -m benchmarks.adapters checkpoints/gr1_small --demonstrations 50 --steps 500 --chains 400

The checkpoint has seen scenes A, B and C. `vla-collect` records demonstrations in D, each one task of the scripted experts (one
that fails leaves none), `vla-train` goes on from the checkpoint with them, and `vla-evaluate` plays the same chains in D with
each result and with the checkpoint as it was. A smaller number of demonstrations is the beginning of a larger one. The same
command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.recipes import command, run
from vla.data.store import Dataset

SCENE = ["env=playtable_abc", "env.world.scene=D", "env.world.randomize=0", "env.world.num_worlds=4", "workers=1"]


@dataclass(frozen=True)
class Method:
    """A word about it and `vla-train`'s overrides."""

    what: str
    overrides: Sequence[str]


METHODS = {
    "full": Method("all parameters", ["trainer.learning_rate=2e-4"]),
    "lora": Method("rank 1 beside all layers (conf/adapter/lora.yaml)", ["adapter=lora", "trainer.learning_rate=2e-3"]),
    "lora_4": Method(
        "rank 4 beside all layers", ["adapter=lora", "adapter.rank=4", "adapter.alpha=8", "trainer.learning_rate=2e-3"]
    ),
    "lora_trunk": Method(
        "rank 3 beside the trunk's layers",
        ["adapter=lora", "adapter.rank=3", "adapter.alpha=6", "adapter.layers=[trunk]", "trainer.learning_rate=2e-3"],
    ),
}


def demonstrations(count: int, options: argparse.Namespace, log: Path) -> Path:
    """A dataset of that many demonstrations, in units of one task each."""
    out = Path(options.out) / f"demonstrations-{count}"
    run(command("collect", f"out={out}", f"frames={count}", "unit_frames=1", *SCENE), log)
    return out


def score(checkpoint: Path, out: Path, options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """What `vla-evaluate` says of the checkpoint, from before if it was asked before."""
    if not (out / "results.json").exists():
        rules = [f"chains={options.chains}", f"execute={options.execute}", "videos=0", "workers=1"]
        run(command("evaluate", f"checkpoint={checkpoint}", f"out={out}", *rules), log)
    return json.loads((out / "results.json").read_text())["summary"]["average_length"]


def measure(name: str, count: int, options: argparse.Namespace) -> str:
    """A row of the table: train with that many demonstrations and score."""
    out = Path(options.out) / f"{name}-{count}"
    out.mkdir(parents=True, exist_ok=True)
    data = demonstrations(count, options, out / "log")
    train = [f"init_from={options.checkpoint}", f"policy={options.policy}", f"data.path={data}", f"out={out / 'run'}"]
    train += [f"trainer.steps={options.steps}", f"trainer.batch_size={options.batch}", "trainer.warmup=50", "trainer.threads=1"]
    train += ["trainer.validate_every=null", "trainer.picture_every=null", "trainer.save_every=100", "trainer.ema=0.99"]
    run(command("train", *train, *METHODS[name].overrides), out / "log")
    training = json.loads((out / "run" / "last" / "training.json").read_text())
    found = score(out / "run" / "last", out / "D", options, out / "log")
    return row(name, METHODS[name].what, len(Dataset(str(data)).segments), training, found)


def row(name: str, what: str, count: int, training: Mapping[str, Any], length: Mapping[str, float]) -> str:
    adapter = training.get("adapter")
    share = f"{100 * adapter['trained'] / adapter['parameters']:.2f} %" if adapter else "100 %" if count else "-"
    minutes = f"{training['cpu_seconds'] / 60:.1f}" if count else "-"
    success = f"{length['value']:.2f} [{length['low']:.2f}, {length['high']:.2f}]"
    return f"| {name} | {what} | {count} | {share} | {minutes} | {success} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a policy that has not seen scene D")
    parser.add_argument("--policy", default="gr1_small", help="its config's name")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[50])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--execute", type=int, default=5, help="actions of a chunk")
    parser.add_argument("--out", default="runs/adapters")
    parser.add_argument("--table", default="benchmarks/results/adapters.md")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    lines = ["| method | trained | demonstrations | share of the parameters | CPU-minutes of training | average length in D |"]
    lines.append("|---" * 6 + "|")
    before = score(Path(options.checkpoint), Path(options.out) / "before", options, Path(options.out) / "log")
    lines.append(row("before", "nothing: the checkpoint as it is", 0, {}, before))
    print("\n".join(lines), flush=True)
    for count in options.demonstrations:
        for name in options.methods:
            lines.append(measure(name, count, options))
            print(lines[-1], flush=True)
    purpose = (__doc__ or "").split("\n\n")
    told = "python -m benchmarks.adapters " + " ".join(sys.argv[1:])
    text = "\n\n".join(["# Adapters", purpose[0], purpose[2].strip(), f"    {told}", machine(), "\n".join(lines)])
    Path(options.table).write_text(text + "\n")


if __name__ == "__main__":
    main()
