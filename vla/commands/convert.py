"""vla-convert: make something of this project out of something else, or the other way round.

    vla-convert path=clips out=data/clips
    vla-convert source=calvin path=task_D_D/training out=data/calvin_D

`source` names a converter of conf/source, which is called with all the config's keys. Run again after a kill, it goes on
where it was. Exit status 0: all was converted; 1: all but what is listed as skipped; 2: nothing, for the reason given.
"""

from __future__ import annotations

import sys
import time

from hydra.utils import instantiate
from omegaconf import DictConfig

from vla.commands.common import command


@command("convert")
def main(config: DictConfig) -> None:
    begin = time.perf_counter()
    summary = instantiate(config, _convert_="all")
    *details, total = summary.lines()
    for line in details:
        print(line)
    print(f"{config.out}: {total}, {time.perf_counter() - begin:.0f} s")
    if summary.skipped:
        sys.exit(1)


if __name__ == "__main__":
    main()
