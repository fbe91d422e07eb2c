"""The README's pictures: the four scenes, and a film of an evaluation as an animation.

    python docs/pictures.py runs/demo/videos/chain-0000.mp4

Writes docs/scenes.png and docs/film.webp. The film is shown at twice its speed, ten pictures a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
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
    first, *rest = frames(arguments.film)
    first.save(HERE / "film.webp", save_all=True, append_images=rest, duration=100, loop=0, quality=45, method=4)
    for name in ("scenes.png", "film.webp"):
        print(f"{HERE / name}: {(HERE / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
