"""vla-control as a person starts it, with the simulated robot: a signal ends it with the arm holding."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from envs.robot.simulated.wire import Wire
from vla.data.store import check

SIZES = {"static": (96, 96), "wrist": (96, 96)}
HERE = Path(__file__).parent


def wait_for(condition, process, seconds=300.0):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"vla-control ended with status {process.returncode}"
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.02)


def test_the_simulated_robot_stops_holding(tmp_path):
    out, folder = tmp_path / "out", tmp_path / "robot"
    command = [
        sys.executable, "-m", "vla.commands.control", f"out={out}", "+policy._target_=playtable_policy.UpAndDown", "priority=0",
        f"+robot.world.robot.folder={folder}", "+robot.world.robot.linger_s=120", "robot.safety.stop=[policy_dead]",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, cwd=tmp_path)
    try:
        wait_for(lambda: (folder / "wire").exists() and Wire(folder, SIZES).header["commands"] > 30, process)
        wire = Wire(folder, SIZES)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        steps = wire.header["steps"].item()
        while wire.header["steps"] < steps + 3:
            time.sleep(0.02)
        assert wire.header["holding"]
        table = json.loads((out / "cadence.json").read_text())
        assert table["ended"] == "SIGTERM"
        dataset = check(out / "recording")
        assert dataset.instructions[1] == "pull the handle to open the drawer"
        assert dataset.spec.cameras == SIZES
    finally:
        process.kill()
        if (folder / "wire").exists() and (robot := int(Wire(folder, SIZES).header["robot"])):
            os.kill(robot, signal.SIGKILL)
