"""vla-control as a person starts it: a signal ends it with the arm holding, whenever it comes, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from envs.robot.simulated.wire import Wire
from vla.data.store import check

SIZES = {"static": (96, 96), "wrist": (96, 96)}
HERE = Path(__file__).parent


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}"}


def wait_for(condition, process, seconds=900.0):
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
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=ENVIRONMENT, cwd=tmp_path)
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


@contextmanager
def toy_command(tmp_path, policy):
    """vla-control with a toy arm, in a process group of its own, as under a terminal."""
    command = [
        sys.executable, "-m", "vla.commands.control", f"--config-dir={HERE / 'conf'}", "robot=toy", "out=out", "priority=0",
        f"+policy._target_=toy_policy.{policy}", "seconds=600",
    ]  # fmt: skip
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, text=True, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def left(children):
    """Those of these processes that are still there after a while."""
    return psutil.wait_procs(children, timeout=60)[1]


def test_ctrl_c_in_a_terminal_ends_the_run(tmp_path):
    with toy_command(tmp_path, "ToyPolicy") as process:
        out = tmp_path / "out"
        wait_for((out / "recording" / "zarr.json").exists, process)
        wait_for(lambda: '"instruction"' in (out / "events.jsonl").read_text(), process)
        time.sleep(1.0)  # fifty cycles
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        said, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "ended: SIGINT" in said
    assert "Traceback" not in told
    assert check(out / "recording").num_episodes == 1
    assert left(children) == []


def test_a_signal_while_the_policy_is_loaded_ends_all(tmp_path):
    with toy_command(tmp_path, "NeverReady") as process:
        wait_for((tmp_path / "building").exists, process)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted"
    assert "Traceback" not in told
    assert left(children) == []
