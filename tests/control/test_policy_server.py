"""The policy at a server: the arm follows it, and holds when the server is killed or stops answering."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_control_run import config, ended_well, names, when_moving
from toy_arm import ARMS

from vla.control.run import run

__all__ = ["config"]


@pytest.fixture
def server(config):
    """The process of a server that `config` asks."""
    script = Path(__file__).with_name("toy_server.py")
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        url = f"ws://127.0.0.1:{int(process.stdout.readline())}"
        config.policy = {"_target_": "policies.remote.Remote", "url": url, "timeout_s": 1.0, "openpi": {}}
        yield process
        process.send_signal(signal.SIGCONT)
        process.kill()


def test_a_served_policy_drives_the_arm(config, server):
    config.seconds = 0.5
    table = run(config, keyboard=None)
    ended_well(config, table)
    assert table["fault"] is None
    sent = np.array([c for c in ARMS[-1].log if not isinstance(c, str)])
    assert sent[:, 0].max() > 0.03  # the policy counts up within a chunk


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("way", "faults"), [("SIGKILL", {"policy_dead"}), ("SIGSTOP", {"policy_dead", "policy_late"})])
def test_a_server_that_is_killed_or_stops_at_a_random_time_ends_the_run_holding(config, server, way, faults, seed):
    config.robot.safety.give_up_s = 1.0
    actions = int(np.random.default_rng(seed).integers(2, 60))
    when_moving(lambda: server.send_signal(signal.Signals[way]), actions)
    table = run(config, keyboard=None)
    ended_well(config, table)
    assert table["fault"] in faults
    assert faults & set(names(config))
