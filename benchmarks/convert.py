"""Frames per second of the converters, on a short play of the playtable in CALVIN's picture sizes.

    python -m benchmarks.convert --frames 300

One process each. CPU-seconds compare fairly even when other jobs run on the machine; wall time does not. Writes
benchmarks/results/convert.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from benchmarks.machine import machine
from vla.collect import collect
from vla.data.convert.report import Summary


def composed(command: str, *overrides: str):
    with initialize_config_module("conf", version_base="1.3"):
        return compose(command, list(overrides))


def measured(name: str, work: Callable[[], Summary], folder: Path) -> str:
    wall, cpu = time.perf_counter(), time.process_time()
    frames = work().made["frames"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e3 / frames
    return f"| {name} | {frames} | {frames / cpu:.0f} | {frames / wall:.0f} | {size:.1f} |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--frames", type=int, default=300)
    frames = arguments.parse_args().frames
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        play = composed(
            "collect",
            f"out={root / 'play'}",
            f"frames={frames}",
            "env.world.scene=D",
            "env.world.num_worlds=1",
            "workers=1",
            "env.world.cameras={static:[200,200],wrist:[84,84]}",
        )
        list(collect(play))
        rows = []
        for source, path, out, options in (
            ("to_calvin", "play", "calvin", ["workers=1"]),
            ("calvin", "calvin", "from_calvin", ["workers=1"]),
            ("to_lerobot", "play", "film", ["form=video"]),
            ("lerobot", "film", "from_film", []),
            ("to_lerobot", "play", "pictures", ["form=image"]),
            ("lerobot", "pictures", "from_pictures", []),
        ):
            if source == "to_lerobot":
                import vla.data.convert.to_lerobot  # noqa: F401  importing LeRobot is not the converter's work
            config = composed("convert", f"source={source}", f"path={root / path}", f"out={root / out}", *options)
            name = " ".join(
                [source, *(o for o in options if o.startswith("form")), *([f"of {path}"] if source == "lerobot" else [])]
            )
            rows.append(measured(name, lambda c=config: instantiate(c, _convert_="all"), root / out))
            print(rows[-1], flush=True)
    table = "\n".join(
        ["| source | frames | frames per CPU-second | frames/s | kB per frame of the output |", "|---|---|---|---|---|", *rows]
    )
    text = f"# Converters\n\n{' '.join((__doc__ or '').split('Writes')[0].split())}\n\nOn {machine()}.\n\n{table}\n"
    Path("benchmarks/results/convert.md").write_text(text)


if __name__ == "__main__":
    main()
