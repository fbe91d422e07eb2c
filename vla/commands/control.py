"""vla-control: a policy drives a robot, safely and on time; by default the simulated one through five instructions.

    vla-control
    vla-control robot=playtable checkpoint=runs/abc/last 'instructions=[open the drawer]' stay=true out=runs/lab
    vla-control replay.path=outputs/control/recording replay.episode=2
    vla-control view=rerun

Enter, Ctrl-C, SIGTERM or a file `STOP` in `out` stop it; a sentence and Enter is the next instruction; y or n and Enter says
whether the present one is done. It always ends with the arm holding and the recording closed. Exit status 1 after a fault.
"""

from __future__ import annotations

import signal
import sys

from omegaconf import DictConfig

from vla.commands.common import command
from vla.control.cadence import lines
from vla.control.run import run


@command("control")
def main(config: DictConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while all is built; then the desk listens
    table = run(config)
    print("\n".join(lines(table)))
    print(f"ended: {table['ended']}; recording: {config.out}/recording; events: {config.out}/events.jsonl")
    if table["fault"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
