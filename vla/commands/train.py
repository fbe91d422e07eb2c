"""vla-train: train a policy on labelled robot data.

vla-train policy=gr1_small data.path=datasets/abc out=runs/abc init_from=runs/droid/last
"""

from __future__ import annotations

from omegaconf import DictConfig

from vla.commands.common import command
from vla.training.setup import build


@command("train")
def main(config: DictConfig) -> None:
    build(config, actions=True).fit()


if __name__ == "__main__":
    main()
