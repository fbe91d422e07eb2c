"""LeRobot's SO-101, unmodified, on simulated servos: it moves, and whatever the bus does, the arm ends up holding."""

import json
import time

import numpy as np
import pytest
from feetech_bus import GOAL, JOINTS, LOCK, TORQUE, Bus
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vla.control.cadence import Cadence
from vla.control.clock import Clock
from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Paced
from vla.control.run import run
from vla.control.safety import Safe, Stopped
from vla.data.store import check
from vla.spec import STATE, UserError

TICK = 2 * np.pi / 4095
GO = np.array([[0.3, -0.2, 0.1, 0.0, 0.0, 0.6]])
BACK = np.array([[-0.3, 0.2, -0.1, 0.0, 0.0, 0.4]])
FAULTS = {
    "silent": {"connection_lost"}, "checksum": {"connection_lost"}, "garbage": {"connection_lost"},
    "short": {"state_out_of_limits", "too_fast"}, "missing": {"connection_lost"}, "late": {"connection_lost"},
}  # fmt: skip


class PatientClock(Clock):
    """For what has nothing to do with time: a machine that is busy does not make actions late."""

    overdue = False


@pytest.fixture
def bus(tmp_path):
    with Bus() as made:
        made.calibrate(tmp_path, "so101")
        yield made


@pytest.fixture
def config(bus, tmp_path):
    with initialize_config_module("conf", version_base="1.3"):
        robot = compose(
            "control",
            [
                "robot=so101", f"robot.world.robot.port={bus.port}", f"robot.world.robot.calibration_dir={tmp_path}",
                "~robot.world.cameras", "~robot.world.robot.cameras",
            ],
        ).robot  # fmt: skip
    robot.world.robot.num_read_retries = 4  # a busy machine is no fault of the bus
    return robot


@pytest.fixture
def world(config):
    made = instantiate(config.world, _convert_="all")
    yield made
    made.close()


@pytest.fixture
def safe(config, world, tmp_path):
    events = Events(tmp_path / "events.jsonl", quiet=True)
    safety = OmegaConf.to_container(config.safety)
    limits = Limits(world.vla_spec, **safety.pop("limits"))
    made = Safe(Paced(world, Cadence()), limits, events, Board(), **{**safety, "heartbeat_s": 30.0, "give_up_s": 60.0})
    made.world.clock = PatientClock(30.0)
    made.reset()
    yield made
    made.close()


def keep_on(safe):
    for _ in range(1000):
        safe.step(GO)


def told(safe):
    return [json.loads(line) for line in safe.events.path.read_text().splitlines()]


def names(safe):
    return {row["event"] for row in told(safe)}


def until(condition, step, most=400):
    for _ in range(most):
        if condition():
            return
        step()
    raise AssertionError("what was waited for did not come")


def positions(bus):
    return np.array([servo.position for servo in bus.servos.values()])


def goals(bus):
    return np.array([servo.word(GOAL) for servo in bus.servos.values()])


def spoil(bus, fault):
    if fault == "missing":
        bus.missing = {3}
    else:
        bus.fault = fault


def mend(safe, bus):
    bus.fault, bus.missing, safe._retry = None, set(), 0
    time.sleep(0.1)  # until nothing is under way


def test_it_moves_in_radians(bus, world):
    observation, _ = world.reset()
    assert world.observation_space.contains(observation)
    np.testing.assert_allclose(observation[STATE], [[0, 0, 0, 0, 0, 0.5]], atol=2e-3)
    sent = world.send(GO)
    np.testing.assert_allclose(sent, GO, atol=1e-6)
    until(lambda: np.abs(world.sense()[0][STATE] - GO).max() < 4e-3, lambda: time.sleep(0.02))
    np.testing.assert_allclose(positions(bus)[:5], 2048 + GO[0, :5] / TICK, atol=3)
    assert positions(bus)[5] == pytest.approx(1024 + 0.6 * 2048, abs=9)


def test_what_connecting_sets_outlives_a_power_cycle_and_closing_lets_nothing_fall(bus, world):
    world.reset()
    for servo in bus.servos.values():
        assert servo.registers[TORQUE]
        assert servo.registers[LOCK]
    assert bus.servos[1].registers[21] == 16  # the P coefficient
    world.close()
    assert not world.robot.is_connected
    assert all(servo.registers[TORQUE] for servo in bus.servos.values())
    bus.servos[1].power_cycle()
    assert bus.servos[1].registers[21] == 16
    assert not bus.servos[1].registers[TORQUE]


@pytest.mark.parametrize("fault", [*(f for f in FAULTS if f != "late"), "uncalibrated", "no port", "other calibration"])
def test_what_hinders_connecting_is_one_sentence(bus, config, tmp_path, fault):
    words = {"missing": "Missing motor IDs: - 3", "uncalibrated": "lerobot-calibrate", "other calibration": "lerobot-calibrate"}
    if fault == "uncalibrated":
        (tmp_path / "so101.json").unlink()
    elif fault == "other calibration":
        bus.servos[2].put(9, 900)
    elif fault == "no port":
        config.world.robot.port = str(tmp_path / "ttyACM7")
    else:
        spoil(bus, fault)
    world = instantiate(config.world, _convert_="all")
    with pytest.raises(UserError, match=words.get(fault, "cannot be connected")) as mistake:
        world.reset()
    assert "\n" not in str(mistake.value)
    assert not world.robot.is_connected
    assert all(servo.goals == [] for servo in bus.servos.values())
    with pytest.raises(ConnectionError):
        world.hold()
    world.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_bus_that_fails_at_a_random_time_is_held_through(bus, safe, fault, seed):
    rng = np.random.default_rng([seed, *fault.encode()])
    for _ in range(rng.integers(4, 12)):
        safe.step(GO)
    before = len(bus.servos[1].goals)
    place, aim = positions(bus), goals(bus)
    spoil(bus, fault)
    until(lambda: names(safe) & FAULTS[fault], lambda: safe.step(GO), most=8)
    *_, infos = safe.step(GO)
    assert infos["held"]
    held = goals(bus)
    for _ in range(3):
        safe.step(GO)
    np.testing.assert_array_equal(goals(bus), held)  # one hold, not many
    low, high = np.minimum(place, aim), np.maximum(place, aim)
    reach = 0.2 / TICK + 5  # what one more step before the fault was seen may have asked for
    for k, servo in enumerate(bus.servos.values()):
        assert np.all(np.array(servo.goals[before:]) >= low[k] - reach)
        assert np.all(np.array(servo.goals[before:]) <= high[k] + reach)
    mend(safe, bus)
    until(lambda: not safe.active, lambda: safe.step(BACK))
    assert FAULTS[fault] & {row["fault"] for row in told(safe) if row["event"] == "over"}
    until(lambda: positions(bus)[0] < 2048, lambda: safe.step(BACK))  # it goes on
    safe.hold()
    until(lambda: np.ptp([positions(bus)[0] for _ in range(3) if not time.sleep(0.05)]) < 0.5, lambda: None)
    shown = safe.world.arm.sense()[0][STATE][0]  # and what it reads is of now
    np.testing.assert_allclose(shown[:5], (positions(bus)[:5] - 2048) * TICK, atol=3 * TICK)


def test_a_bus_that_stays_silent_ends_the_run(bus, safe):
    safe.give_up_s = 0.3
    safe.step(GO)
    bus.fault = "silent"
    with pytest.raises(Stopped, match="connection_lost"):
        keep_on(safe)
    time.sleep(0.5)
    place = positions(bus)
    time.sleep(0.2)
    np.testing.assert_allclose(positions(bus), place, atol=1)


def test_a_plug_that_is_pulled_ends_the_run(bus, safe):
    safe.give_up_s = 0.3
    safe.step(GO)
    bus.ended = True
    bus.thread.join()
    bus.unplug()
    with pytest.raises(Stopped, match="connection_lost"):
        keep_on(safe)


def test_a_hold_does_not_sink(bus, safe):
    for servo in bus.servos.values():
        servo.droop = 25.0
    until(lambda: positions(bus)[0] > 2048 + 0.2 / TICK, lambda: safe.step(GO))
    for _ in range(20):
        safe.board.demand("waiting")
        safe.step(GO)
    held = goals(bus)
    for _ in range(20):
        safe.board.demand("waiting")
        *_, infos = safe.step(GO)
    np.testing.assert_array_equal(goals(bus), held)
    np.testing.assert_allclose(infos["sent"][0, :5], (held[:5] - 2048) * TICK, atol=2 * TICK)


def test_a_session_drives_it_and_ends_holding(bus, tmp_path):
    overrides = [
        "robot=so101", f"robot.world.robot.port={bus.port}", f"robot.world.robot.calibration_dir={tmp_path}",
        "robot.world.robot.num_read_retries=4", "~robot.world.cameras", "~robot.world.robot.cameras",
        "+policy._target_=so101_policy.Aside", f"out={tmp_path}/out", "instructions=[aside]", "seconds=3", "priority=0",
    ]  # fmt: skip
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("control", overrides)
    table = run(config, keyboard=None)
    assert table["fault"] is None
    assert positions(bus)[0] == pytest.approx(2048 + 0.5 / TICK, abs=40)
    assert all(servo.registers[TORQUE] for servo in bus.servos.values())
    dataset = check(tmp_path / "out" / "recording")
    assert dataset.vectors[STATE][0, 0] == pytest.approx(0, abs=0.01)
    assert dataset.vectors[STATE][-1, 0] == pytest.approx(0.5, abs=0.1)
    assert dataset.instructions == ["", "aside"]


def test_the_joints_are_named_as_the_servos_are(world):
    assert tuple(entry.name for entry in world.vla_spec.action) == JOINTS
