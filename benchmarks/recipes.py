"""What each part of GR-1's recipe is worth: policies trained at one budget, each with one thing changed, on the same chains.

    python -m benchmarks.recipes data/abc --pretrained runs/droid/last --cpu-seconds 1200 --chains 400

Every recipe is trained by `vla-train` on one core and scored by `vla-evaluate` on scene D; the same command again goes on where
it was stopped, trainings included. The budget is CPU time, so that a dearer loss sees fewer windows; `--steps` gives every
recipe the same number of windows instead. Two recipes need play of their own: `--scene-d` and `--mistakes`. Writes
benchmarks/results/recipes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """What differs from the default: a word about it, `vla-train`'s overrides, actions executed of a chunk."""

    what: str
    overrides: Sequence[str] = ()
    execute: int = 5
    pretrained: bool = True
    parts: str = "[model.decoder,model.resampler]"
    """What is taken of the video pretraining, as `vla-train init_parts`."""
    more: str = ""
    """Which other play is added: an option of this script that names the dataset."""


RECIPES = {
    "default": Recipe(
        "decoder from video pretraining, chunk of 10 by 2 queries, history 1, regression, foresight loss, swapped parts"
    ),
    "whole_pretraining": Recipe("all of the video pretraining", parts="null"),
    "vision_pretraining": Recipe(
        "the vision encoders of the video pretraining, too", parts="[model.decoder,model.resampler,model.vision]"
    ),
    "no_pretraining": Recipe("no video pretraining", pretrained=False),
    "no_foresight": Recipe("no foresight loss, no pretraining: the control", ["policy.loss.foresight=0"], pretrained=False),
    "abcd": Recipe("play in scene D too", more="scene_d"),
    "mistakes": Recipe("a trained policy begins every task of some of the play (DAgger)", more="mistakes"),
    "no_swap": Recipe("pictures left whole", ["policy.augment.swap=0"]),
    "single_action": Recipe("one action, as published", ["policy.chunk=1", "policy.action_queries=1"], execute=1),
    "ten_queries": Recipe("one query for each action of the chunk", ["policy.action_queries=10"]),
    "sees_foresight": Recipe("actions attend to foresight tokens", ["policy.act_sees_foresight=true"]),
    "history_4": Recipe("4 frames, 3 steps apart", ["policy.history=4", "policy.history_stride=3"]),
    "flow": Recipe("flow-matching head, 4 steps", ["head@policy.head=flow"], execute=2),
    "progress": Recipe("the task's progress is predicted, too", ["policy.auxiliary.progress=true"]),
    "objects": Recipe(
        "the objects' state is predicted, too, pictures left whole", ["policy.auxiliary.objects=24", "policy.augment.swap=0"]
    ),
    "imagenet": Recipe("vision begins with ImageNet's EfficientNet-Lite0", ["vision@policy.vision=lite0"]),
    "imagenet_frozen": Recipe(
        "ImageNet's EfficientNet-Lite0, not trained on", ["vision@policy.vision=lite0", "policy.vision.trained=false"]
    ),
    "every_future": Recipe("foresight trained on every window", ["policy.foresight.fraction=1"]),
    "dt_1": Recipe("foresight 1 step ahead", ["policy.foresight.steps=1"]),
    "dt_5": Recipe("foresight 5 steps ahead", ["policy.foresight.steps=5"]),
}


def command(name: str, *overrides: str) -> list[str]:
    """One of vla's commands, as a process."""
    return [sys.executable, "-m", f"vla.commands.{name}", *overrides]


def run(command: Sequence[str], log: Path) -> None:
    """One command on one core, its output appended to `log`; an error names the log."""
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: see {log}.")


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one recipe unless that was done before; gives its row."""
    recipe, out = RECIPES[name], Path(options.out) / f"{name}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    data = [options.data, *([getattr(options, recipe.more)] if recipe.more else [])]
    budget = f"trainer.steps={options.steps}" if options.steps else f"trainer.cpu_seconds={options.cpu_seconds:g}"
    train = [f"data.path=[{','.join(data)}]", f"data.cache={options.cache}", f"out={out / 'run'}", f"seed={seed}", budget]
    train += [f"trainer.batch_size={BATCH}", "trainer.ema=0.999", "trainer.threads=1", "trainer.picture_every=null"]
    train += ["trainer.validate_every=null", "trainer.save_every=500", *recipe.overrides]
    if recipe.pretrained and options.pretrained:
        train += [f"init_from={options.pretrained}", f"init_parts={recipe.parts}"]
    score = [f"checkpoint={out / 'run' / 'last'}", f"chains={options.chains}", f"execute={recipe.execute}", "videos=2"]
    score += [f"out={out / 'D'}", "workers=1"]
    results = out / "D" / "results.json"
    if not results.exists():
        run([sys.executable, "-m", "vla.commands.train", *train], out / "log")
        run([sys.executable, "-m", "vla.commands.evaluate", *score], out / "log")
    training = json.loads((out / "run" / "last" / "training.json").read_text())
    return {"recipe": name, "seed": seed, "training": training, "result": json.loads(results.read_text())}


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    training, summary, recipe = row["training"], row["result"]["summary"], RECIPES[row["recipe"]]
    length, foresight = summary["average_length"], summary["foresight"]
    ratios = " / ".join(f"{ratio['ratio']:.2f}" for ratio in foresight.values()) or "-"
    return (
        f"| {row['recipe']} | {recipe.what} | {row['seed']} | {training['step'] * BATCH:,} "
        f"| {training['cpu_seconds'] / 60:.0f} | {recipe.execute} "
        f"| {length['value']:.2f} [{length['low']:.2f}, {length['high']:.2f}] | {ratios} |"
    )


def publish(name: str, title: str, about: str, lines: Sequence[str]) -> None:
    """Write benchmarks/results/<name>.md: what is measured and how (first and third paragraph of `about`), command, table."""
    purpose, _, how = about.split("\n\n")[:3]
    command = f"    python -m benchmarks.{name} " + " ".join(sys.argv[1:])
    text = "\n\n".join([f"# {title}", purpose, how.strip(), command, machine(), "\n".join(lines)])
    Path(f"benchmarks/results/{name}.md").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="play in scenes A, B and C")
    parser.add_argument("--scene-d", help="play in scene D, for `abcd`")
    parser.add_argument("--mistakes", help="play that a learner began (vla-collect learner=...), for `mistakes`")
    parser.add_argument("--pretrained", help="checkpoint of a training on video; without it none begins from one")
    parser.add_argument("--cache", default="null", help="folder for frames, as data.cache")
    parser.add_argument("--cpu-seconds", type=float, default=1200.0, help="of training, for each recipe")
    parser.add_argument("--steps", type=int, help=f"of {BATCH} windows, instead of a time")
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="recipes at the same time")
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, help="only these")
    parser.add_argument("--out", default="runs/recipes")
    options = parser.parse_args()
    names = options.recipes or [n for n, recipe in RECIPES.items() if not recipe.more or getattr(options, recipe.more)]
    for name in names:
        if RECIPES[name].more and not getattr(options, RECIPES[name].more):
            parser.error(f"recipe {name} needs --{RECIPES[name].more.replace('_', '-')}: give the dataset.")
    wanted = [(name, seed) for seed in range(options.seeds) for name in names]
    lines = ["| recipe | what it is | seed | windows | CPU-minutes | executed | average length | foresight, static / wrist |"]
    lines.append("|---" * 8 + "|")
    print("\n".join(lines))
    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(lambda job: measure(job[0], job[1], options), wanted):
            lines.append(line(row))
            print(lines[-1], flush=True)
    publish("recipes", "Recipes", __doc__ or "", lines)


if __name__ == "__main__":
    main()
