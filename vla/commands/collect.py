"""vla-collect: let a policy play in a world and keep what it does as a labelled dataset.

    vla-collect env=playtable_abc frames=500000 out=data/abc

The same command again goes on where a killed one was; it stops at once if all is there.
"""

from __future__ import annotations

from omegaconf import DictConfig
from tqdm import tqdm

from vla.collect import collect
from vla.commands.common import command
from vla.data.store import Dataset


@command("collect")
def main(config: DictConfig) -> None:
    steps = collect(config)
    frames, solved = next(steps)
    with tqdm(total=max(config.frames, frames), initial=frames, unit="frame", unit_scale=True, smoothing=0.05) as bar:
        for more, tasks in steps:
            solved += tasks
            bar.update(more)
            bar.set_postfix_str(f"{solved} tasks solved")
    dataset = Dataset(config.out)
    print(
        f"{config.out}: {dataset.num_frames} frames, {dataset.num_episodes} episodes, {len(dataset.segments)} labelled tasks "
        f"of {len(dataset.tasks) - 1} kinds, digest {dataset.digest}"
    )


if __name__ == "__main__":
    main()
