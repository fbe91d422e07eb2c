"""vla-doctor: what is wrong with this machine, a dataset or a checkpoint, and whether they fit each other.

vla-doctor
vla-doctor path=data/abc checkpoint=checkpoints/gr1_small
vla-doctor path=[data/abc,data/d] env=playtable_abcd

One line for each thing that was looked at: fine, note or wrong. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from vla.commands.common import command
from vla.doctor import examine


@command("doctor")
def main(config: DictConfig) -> None:
    wrong = 0
    for kind, text in examine(config):
        print(f"{kind + ':':6} {text}", flush=True)
        wrong += kind == "wrong"
    print(f"{wrong} wrong" if wrong else "nothing is wrong")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
