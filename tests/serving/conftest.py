"""A small GR-1 as a checkpoint, and the command that serves it in a process of its own."""

import sys
from pathlib import Path

import pytest
from served import command

sys.path.append(str(Path(__file__).parents[1] / "policies" / "gr1"))
from small_gr1 import config, policy

from vla.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny GR-1 with a history of three frames."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    return save_checkpoint(folder, policy(history=3), config(history=3), {"step": 0})


@pytest.fixture(scope="session")
def process(checkpoint):
    """(process, port) of a `vla-serve` for it."""
    with command(f"checkpoint={checkpoint}", "server.slow_s=2", f"hydra.run.dir={checkpoint.parent / 'notes'}") as running:
        yield running
