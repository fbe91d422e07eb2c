"""The simulated robot as a process: it moves in real time, its sensors fail as asked, and it holds when left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import conf
from envs.playtable.kinematics import JOINT_HIGH, JOINT_LOW
from envs.playtable.scene import ARM_JOINTS
from envs.playtable.world import ACTION_ENTRIES, FRAME, STATE_ENTRIES
from envs.robot.simulated import Disturbance, SimulatedPlaytable, SimulatedPlaytableConfig
from envs.robot.simulated.wire import Wire

SIZES = {"static": (24, 24), "wrist": (24, 24)}
CLIENT = """
import sys, time
from envs.robot.simulated import SimulatedPlaytable, SimulatedPlaytableConfig
robot = SimulatedPlaytable(SimulatedPlaytableConfig(folder=sys.argv[1], linger_s=60, sizes={sizes}))
robot.connect()
print("moving", flush=True)
while True:
    robot.send_action({{name: 0.5 for name in robot.action_features}})
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    made = SimulatedPlaytable(SimulatedPlaytableConfig(folder=str(tmp_path_factory.mktemp("robot")), sizes=SIZES))
    made.connect()
    yield made
    made.disconnect()


@pytest.fixture(autouse=True)
def sound(request):
    """Whatever a test breaks is whole again for the next."""
    yield
    if "robot" in request.fixturenames:
        made = request.getfixturevalue("robot")
        made._wire.disturb(Disturbance())


def position(robot):
    return np.array([robot.get_observation()[f"tcp_{axis}.pos"] for axis in "xyz"])


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.01)


def at_rest(wire):
    """Whether the hand has stood still over ten of the robot's steps."""
    first, since = wire.newest()["state"][7:14], wire.header["steps"].item()
    wait_for(lambda: wire.header["steps"] > since + 10)
    return np.abs(wire.newest()["state"][7:14] - first).max() < 2e-3


def move(robot, steps=10, **deltas):
    for _ in range(steps):
        robot.send_action({name: deltas.get(name, 0.0) for name in robot.action_features})
        time.sleep(1 / 30)


def test_the_config_is_the_playtable():
    config = OmegaConf.load(Path(conf.__file__).parent / "robot" / "playtable.yaml")
    spec = instantiate(config.world, _convert_="all").vla_spec
    assert (spec.state, spec.action, spec.frame) == (STATE_ENTRIES, ACTION_ENTRIES, FRAME)
    assert (spec.action_kind, spec.control_hz) == ("relative_pose", 30.0)


def test_an_arm_that_rests_at_the_end_of_a_joint_is_not_at_fault():
    """Targets are clipped to the joint limits; under load the arm may rest as far beyond as the joints themselves give way."""
    config = OmegaConf.load(Path(conf.__file__).parent / "robot" / "playtable.yaml")
    for name, low, high in zip(ARM_JOINTS, JOINT_LOW, JOINT_HIGH, strict=True):
        least, most = config.safety.limits.state[name.replace("panda_joint", "joint_")]
        assert least < low - 0.025
        assert most > high + 0.025


def test_moves_as_told_and_holds(robot):
    start = position(robot)
    for _ in range(3):
        move(robot, **{"delta_x.vel": 0.5, "gripper.vel": 1.0})
    assert position(robot)[0] > start[0] + 0.02
    robot.hold()
    wait_for(lambda: robot._wire.header["holding"])
    wait_for(lambda: at_rest(robot._wire))


def test_left_alone_it_holds_by_itself(robot):
    move(robot, **{"delta_y.vel": 0.3})
    wait_for(lambda: not robot._wire.header["holding"])
    wait_for(lambda: robot._wire.header["holding"])


def test_observations_are_what_the_features_say(robot):
    observation = robot.get_observation()
    assert set(observation) == set(robot.observation_features)
    assert observation["static"].shape == (24, 24, 3)
    assert set(robot.stamps()) == {"", "static", "wrist"}
    assert all(time.monotonic_ns() >= t > 0 for t in robot.stamps().values())


def test_late_cameras_and_joints_carry_the_time_at_which_they_were_taken(robot):
    robot.disturb(latency_ms=200.0, state_latency_ms=50.0)
    time.sleep(0.5)

    def lags():
        robot.get_observation()
        stamps = robot.stamps()
        return [stamps[""] - stamps[camera] for camera in SIZES]

    wait_for(lambda: min(lags()) >= 100e6)


def test_dropped_frames_and_jitter_never_turn_time_back(robot):
    robot.disturb(drop=0.6, jitter_ms=40.0)
    times = []
    for _ in range(30):
        robot.get_observation()
        times.append(robot.stamps()["static"])
        time.sleep(1 / 60)
    assert np.all(np.diff(times) >= 0)
    assert len(set(times)) > 1


def test_a_frozen_camera_repeats_and_a_sound_one_never_does(robot):
    def picture_after_a_new_frame():
        before = robot.stamps()["static"]
        wait_for(lambda: robot.get_observation() and robot.stamps()["static"] > before)
        return robot.get_observation()["static"]

    robot.get_observation()
    assert not np.array_equal(picture_after_a_new_frame(), picture_after_a_new_frame())
    robot.disturb(frozen=True)
    picture_after_a_new_frame()
    time.sleep(0.1)
    assert np.array_equal(picture_after_a_new_frame(), picture_after_a_new_frame())


def test_silence_stops_the_stamps(robot):
    robot.disturb(silent=True)
    time.sleep(0.2)
    robot.get_observation()
    before = robot.stamps()
    time.sleep(0.2)
    robot.get_observation()
    assert robot.stamps() == before


def test_a_cut_link_raises_and_the_arm_holds(robot):
    move(robot, **{"delta_x.vel": -0.3})
    robot.disturb(cut=True)
    for call in (robot.get_observation, robot.hold, lambda: move(robot, 1)):
        with pytest.raises(ConnectionError):
            call()
    wait_for(lambda: robot._wire.header["holding"])


@pytest.mark.parametrize("action", [{}, {"delta_x.vel": 1.0}, "nan"])
def test_a_wrong_action_is_refused(robot, action):
    if action == "nan":
        action = dict.fromkeys(robot.action_features, float("nan"))
    with pytest.raises(ValueError, match="action"):
        robot.send_action(action)


def test_a_client_killed_in_motion_leaves_the_arm_holding(tmp_path):
    command = [sys.executable, "-c", CLIENT.format(sizes=SIZES), str(tmp_path)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert "moving\n" in iter(client.stdout.readline, "")  # after what the robot may have said about compiling
        wire = Wire(tmp_path, SIZES)
        wait_for(lambda: wire.header["commands"] > 20)
        client.send_signal(signal.SIGKILL)
        client.wait()
        wait_for(lambda: wire.header["holding"])
        wait_for(lambda: at_rest(wire))
    finally:
        client.kill()
        if robot := int(Wire(tmp_path, SIZES).header["robot"]):
            os.kill(robot, signal.SIGKILL)
