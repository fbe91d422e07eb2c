"""vla-convert: make a dataset of something else.

    vla-convert source=videos path=clips out=data/clips

turns a folder of clips and captions into a video dataset. Run again after a kill, it goes on where it was.
"""

from __future__ import annotations

import time
from collections import Counter

from omegaconf import DictConfig

from vla.commands.common import command
from vla.data.video import convert_videos
from vla.spec import UserError

SHOWN = 10  # names of skipped clips per reason


@command("convert")
def main(config: DictConfig) -> None:
    if config.source != "videos":
        raise UserError(f"source is {config.source!r}: this version converts source=videos.")
    begin = time.perf_counter()
    summary = convert_videos(
        config.path,
        config.out,
        camera=config.camera,
        size=config.size,
        fit=config.fit,
        fps=config.fps,
        threads=config.threads,
    )
    for reason, count in Counter(summary.skipped.values()).most_common():
        files = [f for f, r in summary.skipped.items() if r == reason]
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        print(f"skipped {count}: {reason}: {', '.join(files[:SHOWN])}{more}")
    seconds = time.perf_counter() - begin
    print(f"{config.out}: {summary.clips} clips, {summary.frames} frames, {len(summary.skipped)} skipped, {seconds:.0f} s")


if __name__ == "__main__":
    main()
