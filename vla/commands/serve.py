"""vla-serve: let robots and benchmarks ask a policy over a socket (openpi's clients, vla-eval, policy=remote).

vla-serve checkpoint=checkpoints/gr1_small
VLA_TOKEN=... vla-serve checkpoint=checkpoints/gr1_small server.host=0.0.0.0
"""

from __future__ import annotations

import signal

from omegaconf import DictConfig

from vla.commands.common import command
from vla.serving.run import serve


@command("serve")
def main(config: DictConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while the policy is loaded; then the server listens
    serve(config)


if __name__ == "__main__":
    main()
