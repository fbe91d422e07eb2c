"""vla-pretrain: train a policy to foresee, on video and captions alone.

vla-pretrain policy=gr1_small data=droid data.path=datasets/droid out=runs/droid
"""

from __future__ import annotations

from omegaconf import DictConfig

from vla.commands.common import command
from vla.training.setup import build


@command("pretrain")
def main(config: DictConfig) -> None:
    build(config, actions=False).fit()


if __name__ == "__main__":
    main()
