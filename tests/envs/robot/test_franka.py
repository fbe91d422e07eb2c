"""The Franka driver against franky-sim, which speaks libfranka's protocol from a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

pytest.importorskip("franky", reason="the extra franka is not installed (pip install 'hydra-vla[franka]')")
pytest.importorskip("franky_sim", reason="the extra franka is not installed (pip install 'hydra-vla[franka]')")

from franky_sim.mujoco_simulator import FrankaMujocoRobot

import conf
from envs.playtable.kinematics import TCP, forward
from envs.playtable.world import ACTION_ENTRIES, FRAME, STATE_ENTRIES
from envs.robot import RobotWorld
from envs.robot.franka import link as link_module
from envs.robot.franka.config import FrankaLimits
from vla.control.cadence import Cadence
from vla.control.clock import Clock
from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Paced
from vla.control.safety import Safe, Stopped
from vla.data.store import check
from vla.spec import STATE, UserError

HERE = Path(__file__).parent
BASE = [-0.5, 0.0, 0.1]
"""Puts the hand's first place in the middle of the workspace."""
UP, DOWN = np.array([[0, 0, 0.5, 0, 0, 0, 1.0]]), np.array([[0, 0, -0.5, 0, 0, 0, 1.0]])
JOINTS = slice(7, 14)


class PatientClock(Clock):
    """A machine that is busy does not make actions late."""

    overdue = False


class Controller:
    """The simulator's process."""

    def __init__(self, hostname=None):
        command = [sys.executable, str(HERE / "franka_server.py"), *([hostname] if hostname else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        ready, self.hostname = self.process.stdout.readline().split()
        assert ready == "ready"

    def send(self, number):
        self.process.send_signal(number)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def controller():
    made = Controller()
    yield made
    made.close()


@pytest.fixture
def make(tmp_path):
    """The world of conf/robot/franka.yaml for a hostname; changes to the robot's settings, and to the mapping."""
    made = []

    def build(hostname, mapping=None, **settings):
        world = OmegaConf.to_container(OmegaConf.load(Path(conf.__file__).parent / "robot" / "franka.yaml").world)
        del world["_target_"]
        camera = {"type": "toy", "width": 32, "height": 24, "fps": 30}
        world["robot"] |= {
            "hostname": hostname, "realtime": False, "base": BASE, "calibration_dir": str(tmp_path),
            "limits": {"dynamics": 0.6}, "cameras": {"static": camera}, **settings,
        }  # fmt: skip
        world |= {"plugins": ["envs.robot.franka", "toy_camera"], "cameras": {"static": "static"}, **(mapping or {})}
        made.append(RobotWorld(**world))
        return made[-1]

    yield build
    for world in made:
        world.close()


@pytest.fixture
def guard(make, tmp_path):
    """A world with the safety of the configuration around it."""
    made = []

    def build(hostname, stop=("connection_lost",), **settings):
        arm = make(hostname, **settings.pop("robot", {}))
        plain = OmegaConf.to_container(OmegaConf.load(Path(conf.__file__).parent / "robot" / "franka.yaml").safety)
        limits = Limits(arm.vla_spec, **plain.pop("limits"))
        events = Events(tmp_path / f"events-{len(made)}.jsonl", quiet=True)
        patient = {"stale_s": 30.0, "heartbeat_s": 30.0, "give_up_s": 60.0}  # the machine may be busy
        paced = Paced(arm, Cadence())
        paced.clock = PatientClock(30.0)
        safe = Safe(paced, limits, events, Board(), **{**plain, **patient, "stop": stop, **settings})
        made.append(safe)
        safe.reset()
        return safe

    yield build
    for safe in made:
        safe.close()


def wait_for(condition, act=lambda: time.sleep(0.02), seconds=300.0):
    """Until it is so, acting meanwhile. The simulator may be much slower than a clock."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        act()


def state(world):
    return world.sense()[0][STATE][0].astype(float)


def still(world):
    """Whether the arm is at rest, seen over a tenth of a second of its own time."""
    first, begin = state(world)[JOINTS], world.robot._link._clock
    wait_for(lambda: world.robot._link._clock > begin + 100)
    return np.abs(state(world)[JOINTS] - first).max() < 1e-4


def told(safe, name=None):
    rows = [json.loads(line) for line in safe.events.path.read_text().splitlines()]
    return [row for row in rows if name in (None, row["event"])]


def stream(world, action, until):
    """Send an action thirty times a second."""

    def act():
        world.send(action)
        time.sleep(1 / 30)

    wait_for(until, act)


def drive(safe, action, until):
    wait_for(until, lambda: safe.step(action))


MODEL = FrankaMujocoRobot()  # the FR3 in pinocchio; it needs no simulation
RANGES = [st.floats(a, b) for a, b in zip(FrankaLimits().low, FrankaLimits().high, strict=True)]


@given(st.tuples(*RANGES))
def test_the_playtables_kinematics_are_the_arms(joints):
    pose = MODEL.kinematics(np.array(joints))
    position, rotation, _ = forward(np.array(joints), np.zeros(3))
    np.testing.assert_allclose(rotation, pose.rotation, atol=1e-5)
    np.testing.assert_allclose(position, pose.translation + (TCP - 0.1034) * pose.rotation[:, 2], atol=1e-5)


def test_the_config_is_the_playtables_robot(make):
    spec = make("nowhere").vla_spec
    assert (spec.state, spec.action, spec.frame) == (STATE_ENTRIES, ACTION_ENTRIES, FRAME)
    assert (spec.action_kind, spec.control_hz) == ("relative_pose", 30.0)


def test_the_state_is_read_and_stamped(make, controller):
    world = make(controller.hostname)
    observation, infos = world.reset()
    assert world.observation_space.contains(observation)
    here = observation[STATE][0]
    pose = world.robot._link._arm.state.O_T_EE
    np.testing.assert_allclose(here[:3], BASE + pose.translation + (TCP - 0.1034) * pose.matrix[:3, 2], atol=1e-3)
    assert 0 <= here[6] <= 0.081
    assert infos["faults"] == {}
    assert set(world.robot.stamps()) == {"", "static"}
    wait_for(lambda: world.sense()[1]["time_ns"] > infos["time_ns"])
    assert world.sense()[1]["camera_times_ns"]["static"] > infos["camera_times_ns"]["static"]


def test_steps_stream_and_a_hold_stops_them(make, controller):
    world = make(controller.hostname)
    world.reset()
    start = state(world)
    *_, infos = world.step(UP)
    np.testing.assert_allclose(infos["sent"], UP, atol=1e-3)
    stream(world, UP, lambda: state(world)[2] > start[2] + 0.03)
    world.hold()
    wait_for(lambda: still(world))
    end = state(world)
    np.testing.assert_allclose(end[[0, 1]], start[[0, 1]], atol=1e-2)  # the joints are stopped each for itself
    np.testing.assert_allclose(np.abs(end[3]), np.pi, atol=0.05)  # the hand still points down
    stream(world, DOWN, lambda: state(world)[2] < end[2] - 0.02)


def joint_mapping():
    names = [f"joint_{k}" for k in range(1, 8)]
    rows = [{"feature": f"{n}.pos", "name": n, "unit": "rad", "low": -3.1, "high": 4.0, "hold": n} for n in names]
    hand = {"feature": "gripper_action.pos", "name": "gripper", "unit": "1", "low": -1, "high": 1, "hold": "gripper_action"}
    return {"action": [*rows, hand], "action_kind": "joints"}


def test_a_new_joint_target_replaces_the_motion_under_way(make, controller):
    world = make(controller.hostname, joint_mapping(), action="joints", limits={"dynamics": 0.2})
    world.reset()
    start = state(world)[JOINTS]
    there, back = start.copy(), start.copy()
    there[0], back[0] = start[0] + 0.35, start[0] - 0.05
    stream(world, np.array([[*there, 1.0]]), lambda: state(world)[7] > start[0] + 0.1)
    most = []
    stream(world, np.array([[*back, 1.0]]), lambda: most.append(state(world)[7]) or most[-1] < start[0])
    assert max(most) < start[0] + 0.25  # the first target was never reached
    least = []
    stream(world, np.array([[*back, 1.0]]), lambda: least.append(state(world)[7]) or still(world))
    np.testing.assert_allclose(state(world)[JOINTS], back, atol=5e-3)
    assert min(least) > back[0] - 0.01  # a target that is sent again and again is not overshot


def test_targets_stay_in_range_and_near_the_joints(make, controller):
    bounds = {"dynamics": 0.05, "lead": 0.2, "high": [1.0] * 7}
    world = make(controller.hostname, joint_mapping(), action="joints", limits=bounds)
    world.reset()
    start = state(world)[JOINTS]
    beyond = start[5] + 1.0  # of a joint that is outside its range already
    ahead = world.send(np.array([[-0.5, 3.9, *start[2:5], beyond, start[6], 1.0]]))[0, :7] - start
    world.hold()
    assert ahead[1] == pytest.approx(0.2, abs=5e-3)
    assert ahead[0] / ahead[1] == pytest.approx((-0.5 - start[0]) / (1.0 - start[1]), abs=0.02)
    assert ahead[5] == pytest.approx(0.0, abs=5e-3)
    with pytest.raises(ValueError, match="not finite"):
        world.send(np.full((1, 8), np.nan))


def test_the_gripper_closes_and_opens(make, controller):
    world = make(controller.hostname)
    world.reset()
    for grip, reached in ((-1.0, lambda width: width < 0.005), (1.0, lambda width: width > 0.07)):
        world.send(np.array([[0, 0, 0, 0, 0, 0, grip]]))
        wait_for(lambda reached=reached: reached(state(world)[6]))
        assert state(world)[14] == grip


def test_a_reflex_is_told_and_recovered_from(guard, controller):
    safe = guard(controller.hostname)
    drive(safe, UP, lambda: state(safe.world.arm)[2] > 0 and safe.world.arm.robot._link._moving)
    controller.send(signal.SIGUSR1)
    drive(safe, UP, lambda: told(safe, "reflex"))
    assert told(safe, "reflex")[0]["errors"] == ["cartesian_reflex"]
    assert not safe.world.arm.robot._link._moving
    drive(safe, UP, lambda: [row for row in told(safe, "over") if row["fault"] == "reflex"])
    place = state(safe.world.arm)[2]
    drive(safe, DOWN, lambda: state(safe.world.arm)[2] < place - 0.005)


@pytest.mark.parametrize("way", ["stop", "not recovered", "refused"])
def test_a_reflex_that_stays_ends_the_run(guard, controller, way):
    settings = {
        "stop": {"stop": ["reflex"]},
        "not recovered": {"give_up_s": 0.5, "robot": {"recover": False}},
        "refused": {"give_up_s": 2.5},
    }[way]
    safe = guard(controller.hostname, **settings)
    if way == "refused":
        controller.send(signal.SIGUSR2)
    safe.step(UP)
    controller.send(signal.SIGUSR1)
    with pytest.raises(Stopped, match="reflex"):
        drive(safe, UP, lambda: False)
    if way == "refused":
        assert "manual error recovery required" in safe.world.arm.robot.faults()["reflex"]["said"]
        controller.send(signal.SIGUSR2)
    robot = safe.world.arm.robot
    robot.config.recover = True  # for the next test
    wait_for(lambda: robot.get_observation() and (robot.hold() or not robot.faults()))


def lost_and_found(safe, lose, find):
    """Lose the arm while it moves, and find it again."""
    hostname = safe.world.arm.robot.config.hostname
    drive(safe, UP, lambda: safe.world.arm.robot._link._moving)
    lose()
    drive(safe, UP, lambda: told(safe, "connection_lost"))
    assert hostname in told(safe, "connection_lost")[0]["error"]
    assert not safe.world.arm.robot.is_connected
    find()
    drive(safe, UP, lambda: [row for row in told(safe, "over") if row["fault"] == "connection_lost"])
    place = state(safe.world.arm)[2]
    drive(safe, UP, lambda: state(safe.world.arm)[2] > place + 0.003)


def test_a_controller_that_is_killed_in_motion_is_told_and_found_again(guard):
    first, later = Controller(), []
    safe = guard(first.hostname, stop=())
    try:
        lost_and_found(safe, first.close, lambda: later.append(Controller(first.hostname)))
    finally:
        safe.close()
        for made in (first, *later):
            made.close()


def test_a_cable_that_is_pulled_in_motion_is_told_and_found_again(guard, controller):
    safe = guard(controller.hostname, stop=(), stale_s=0.3)
    lost_and_found(safe, lambda: controller.send(signal.SIGSTOP), lambda: controller.send(signal.SIGCONT))
    assert told(safe, "stale_state")


def test_a_lost_connection_ends_the_run(guard, controller):
    safe = guard(controller.hostname)
    safe.step(UP)
    controller.send(signal.SIGSTOP)
    try:
        with pytest.raises(Stopped, match="connection_lost"):
            drive(safe, UP, lambda: False)
    finally:
        controller.send(signal.SIGCONT)


def test_a_controller_that_is_silent_is_not_waited_for(make, monkeypatch):
    monkeypatch.setattr(link_module, "CONNECT_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.77.77.77", 1337))
        silent.listen()
        with pytest.raises(UserError, match=r"127\.77\.77\.77 has not answered"):
            make("127.77.77.77").reset()
    with pytest.raises(UserError, match=r"127\.77\.77\.78 cannot be driven"):
        make("127.77.77.78").reset()


def test_the_whole_command_drives_the_arm_and_stops(tmp_path, controller):
    out, camera = tmp_path / "out", "{type: toy, width: 32, height: 24, fps: 30}"
    command = [
        sys.executable, "-m", "vla.commands.control", "robot=franka", f"out={out}", "priority=0", "seconds=600",
        "+policy._target_=franka_policy.UpAndDown", f"+policy.stop={out}/STOP", "instructions=[up and down]",
        f"robot.world.robot.hostname={controller.hostname}", "+robot.world.robot.realtime=false",
        f"robot.world.robot.base={BASE}", f"+robot.world.robot.calibration_dir={tmp_path}",
        "robot.world.plugins=[envs.robot.franka,toy_camera]", "~robot.world.robot.cameras", "~robot.world.cameras.wrist",
        f"+robot.world.robot.cameras.static={camera}", "robot.safety.stop=[]", "robot.safety.give_up_s=120",
        "robot.world.control_hz=10",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])])}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "ended: file" in done.stdout
    dataset = check(out / "recording")
    assert (dataset.num_episodes, dataset.spec.cameras) == (1, {"static": (24, 32)})
    assert np.ptp(dataset.vectors[STATE][:, 2]) > 0.003
    assert set(dataset.vectors[STATE][:, 14]) == {1.0, -1.0}
