"""How well a policy foresees: the simulated table that it never saw, and real clips that pretraining kept out.

    python -m benchmarks.foresight --clips clips/droid --pretrained runs/droid/last

The playtable: play of the scripted experts in scene D, in the scene's own look. Real video: every 20th of the clips (sorted by
name), which are the ones that training with `data.holdout=20` keeps out, at 10 frames a second. A policy that was trained on
play has a wrist camera and a state, which the clips lack: it is shown black and zeros in their place. `--pretrained` is a
checkpoint of vla-pretrain on the clips. Everything else is `vla-foresight`. Writes benchmarks/results/foresight.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module

from benchmarks.machine import machine
from vla.collect import collect
from vla.data.convert.captions import CAPTIONS, beside
from vla.data.convert.videos import convert
from vla.evaluation.foresight import run

HOLDOUT = 20


def composed(command: str, *overrides: str) -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        return compose(command, overrides=list(overrides))


def play(out: Path, frames: int) -> None:
    """Play in scene D."""
    still = ("env.world.scene=D", "env.world.randomize=0", "env.world.num_worlds=2", "workers=1", "seed=1")
    for _ in collect(composed("collect", f"out={out}", f"frames={frames}", *still)):
        pass


def kept_out(clips: Path, folder: Path, out: Path) -> None:
    """A dataset of the clips that pretraining keeps out."""
    folder.mkdir()
    lines = {line.split('"')[3]: line for line in (clips / CAPTIONS).read_text().splitlines()}
    chosen = [clip.file for clip in beside(clips).clips][HOLDOUT - 1 :: HOLDOUT]
    for file in chosen:
        (folder / file).symlink_to((clips / file).resolve())
    (folder / CAPTIONS).write_text("\n".join(lines[file] for file in chosen))
    convert(folder, out, threads=1)


def table(measured: Sequence[tuple[str, str, Any]]) -> str:
    lines = [
        "| checkpoint | frames of | camera | steps ahead | error, of nothing-moves on moving pixels | moving pixels | SSIM "
        "| SSIM of nothing-moves | frames |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for checkpoint, data, result in measured:
        for camera, horizons in result["foresight"].items():
            for steps, row in horizons.items():
                numbers = f"{row['ratio']:.3f} | {row['moving_pixels']:,.0f} | {row['ssim']:.3f} | {row['ssim_still']:.3f}"
                lines.append(f"| {checkpoint} | {data} | {camera} | {steps} | {numbers} | {row['frames']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", required=True, help="folder of captioned clips, as vla-convert takes it")
    parser.add_argument("--checkpoint", default="checkpoints/gr1_small")
    parser.add_argument("--pretrained", help="a checkpoint of vla-pretrain on the clips")
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--frames", type=int, default=1200, help="of play")
    parser.add_argument("--out", default="benchmarks/results/foresight.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        play(root / "play", options.frames)
        kept_out(Path(options.clips), root / "clips", root / "video")
        kinds = [(options.checkpoint, "play", "scene D"), (options.checkpoint, "video", "clips kept out, no wrist, no state")]
        kinds += [(options.pretrained, "video", "clips kept out")] if options.pretrained else []
        measured = []
        for checkpoint, folder, words in kinds:
            data = "data=droid" if folder == "video" else "data=play"
            which = (f"checkpoint={checkpoint}", f"data.path={root / folder}", "part=all", f"windows={options.windows}")
            blank = f"blank={str('no wrist' in words).lower()}"
            result, _ = run(composed("foresight", "out=nowhere", data, blank, "strips=0", *which))
            measured.append((Path(checkpoint).name if checkpoint == options.checkpoint else "vla-pretrain", words, result))
            print(table(measured), flush=True)
    command = f"python -m benchmarks.foresight --clips {Path(options.clips).name} --windows {options.windows}"
    purpose = (__doc__ or "").split("\n\n")
    whole = ["# Foresight", purpose[0], purpose[2].strip(), f"    {command}", machine(), table(measured)]
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text("\n\n".join(whole) + "\n")


if __name__ == "__main__":
    main()
