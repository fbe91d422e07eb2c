"""The simulated robot knows whether an instruction is done; nobody else is asked."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

from envs.playtable.tasks import TASKS
from envs.robot.simulated import SimulatedPlaytable, SimulatedPlaytableConfig
from envs.robot.simulated.process import Simulation
from envs.robot.simulated.success import Success
from envs.robot.simulated.wire import Wire

SIZES = {"static": (8, 8)}


def folders() -> set[str]:
    return {str(path) for root in ("/dev/shm", "/tmp") for path in Path(root).glob("playtable-*")}


def test_a_task_is_judged_from_the_question_on(tmp_path):
    config = SimulatedPlaytableConfig(sizes=SIZES)
    client = Wire(tmp_path, SIZES, create=True)
    simulation = Simulation(str(tmp_path), asdict(config))
    lit = simulation.start_state.led
    client.judge(TASKS.index("turn_on_led" if lit else "turn_off_led"))
    simulation._step(time.monotonic_ns())
    simulation._step(time.monotonic_ns())
    assert not client.solved  # it is as it was when the question was asked
    simulation.start_state = replace(simulation.start_state, led=not lit)
    simulation._step(time.monotonic_ns())
    assert client.solved
    client.judge(-1)
    assert not client.solved
    simulation._step(time.monotonic_ns())
    simulation._step(time.monotonic_ns())
    assert not client.solved


def test_sentences_of_the_playtable_are_judged_and_others_are_not(tmp_path):
    before = folders()
    robot = SimulatedPlaytable(SimulatedPlaytableConfig(sizes=SIZES))
    check = Success(SimpleNamespace(robot=robot))
    assert check.begin("pull the handle to open the drawer") == "open_drawer"
    assert not check.solved()  # there is no link
    robot._wire = Wire(tmp_path, SIZES, create=True)
    assert check.begin("Pull the handle to open the drawer ") == "open_drawer"
    header = robot._wire.header
    assert (int(header["task"]), int(header["asked"])) == (TASKS.index("open_drawer"), 1)
    header["solved"] = 1
    assert check.solved()
    assert check.begin("sing a song") == ""
    assert not check.solved()
    assert folders() == before  # a robot that was never connected leaves nothing behind
