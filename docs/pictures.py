"""The README's pictures: the four scenes, how success grew with training, and a film of an evaluation as an animation.

    python docs/pictures.py runs/demo/videos/chain-0000.mp4

Writes docs/scenes.png, docs/learning.png (from docs/learning.csv) and docs/film.webp. The film is shown at twice its speed, ten
pictures a second.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import av
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from envs.playtable import make
from vla.spec import image_key

HERE = Path(__file__).parent
SIDE, GAP, SHRINK = 240, 6, 0.75
SKIP = 6
"""Every sixth picture of a film of 30 a second, shown for a tenth of a second."""


def scenes() -> Image.Image:
    """Scenes A to D in a row, as the static camera sees them with the blocks where seed 19 puts them."""
    world = make("ABCD", 4, {"static": (SIDE, SIDE)}, supersample=2)
    observation, _ = world.reset(seed=19)
    pictures = np.pad(observation[image_key("static")], ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return Image.fromarray(np.concatenate(list(pictures), axis=1)[:, :-GAP])


def learning() -> Figure:
    """Average length on D against core-hours and against windows, a line for each run, with 95 % intervals."""
    runs: dict[str, list[dict[str, str]]] = {}
    with (HERE / "learning.csv").open() as file:
        for row in csv.DictReader(file):
            runs.setdefault(row["run"], []).append(row)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, unit in ((axes[0], "core-hours in all", 1.0), (axes[1], "windows in all", 1e6)):
        for run, rows in runs.items():
            x = [float(row[name]) / unit for row in rows]
            y, low, high = (np.array([float(row[n]) for row in rows]) for n in ("average length", "low", "high"))
            axis.errorbar(x, y, [y - low, high - y], marker="o", markersize=4, capsize=2, linewidth=1.2, label=run)
        axis.set(xlabel=name if unit == 1 else "windows in all, millions", ylim=(0, 5), xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("average length, scene D")
    axes[1].legend(loc="lower right", fontsize=8)
    return figure


def frames(film: Path) -> list[Image.Image]:
    """Pictures of a film for the animation."""
    with av.open(str(film)) as container:
        pictures = [frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i % SKIP == 0]
    size = (int(pictures[0].width * SHRINK), int(pictures[0].height * SHRINK))
    return [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path, help="a film that vla-evaluate left")
    arguments = parser.parse_args()
    scenes().save(HERE / "scenes.png", optimize=True)
    learning().savefig(HERE / "learning.png", dpi=110)
    first, *rest = frames(arguments.film)
    first.save(HERE / "film.webp", save_all=True, append_images=rest, duration=100, loop=0, quality=45, method=4)
    for name in ("scenes.png", "learning.png", "film.webp"):
        print(f"{HERE / name}: {(HERE / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
