"""vla-view: a dataset in Rerun; recordings of vla-control with what was asked, imagined and told beside what came.

vla-view path=outputs/control/recording
vla-view path=data/abc episodes=[0,7] view=abc.rrd
"""

from __future__ import annotations

from omegaconf import DictConfig

from vla.commands.common import command
from vla.control.view import show


@command("view")
def main(config: DictConfig) -> None:
    frames = show(config.path, config.episodes, config.view)
    print(f"{frames} frames of {config.path} shown; view={config.view}")


if __name__ == "__main__":
    main()
