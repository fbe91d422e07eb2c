"""A person takes over with a LeRobot teleoperator: same limits, same safety, and the recording knows."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from feetech_bus import Bus
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scripted_teleop import HAND
from toy_arm import ARMS, HZ, LIMITS, PatientClock, ToyArm
from toy_policy import ToyPolicy

import conf
from envs.playtable.world import ACTION_ENTRIES, STATE_ENTRIES
from vla.control.cadence import Cadence
from vla.control.desk import Desk
from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Paced
from vla.control.run import run
from vla.control.safety import Safe
from vla.control.takeover import Takeover
from vla.data.store import check
from vla.data.windows import Windows
from vla.spec import ACTION, STATE, TASK, Spec, UserError

TELEOP = {
    "plugins": ["scripted_teleop"],
    "device": {"type": "scripted_stick"},
    "action": {"dx": {"feature": "x.vel", "scale": 0.01}, "dy": {}, "press": {"feature": "grip", "keep": 1.0, "state": "y"}},
}
CONF = Path(conf.__file__).parent


def until(condition, step=lambda: time.sleep(0.01), seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        step()


def chosen(tmp_path, kind):
    return {**TELEOP, "device": {"type": kind, "calibration_dir": str(tmp_path)}}


class Session:
    """A toy arm, safe, with a toy policy that a person can take over from; `step` is one control step."""

    def __init__(self, tmp_path, teleop=None, arm=None, limits=LIMITS, policy=None):
        self.board, self.events = Board(), Events(tmp_path / "events.jsonl", quiet=True)
        self.desk = Desk(tmp_path / "STOP", None)
        self.arm = arm or ToyArm()
        policy = policy or ToyPolicy(hz=HZ)
        teleop = teleop or chosen(tmp_path, "scripted_stick")
        self.policy = Takeover(policy, teleop, self.arm.vla_spec, self.desk, self.board, self.events)
        settings = {"stale_s": 5.0, "frozen_s": None, "heartbeat_s": 30.0, "give_up_s": 60.0, "stop": ()}
        self.safe = Safe(Paced(self.arm, Cadence()), Limits(self.arm.vla_spec, **limits), self.events, self.board, **settings)
        self.safe.world.clock = PatientClock(self.arm.vla_spec.control_hz)
        self.observation, _ = self.safe.reset()
        self.memory = self.policy.begin([0])

    def step(self):
        chunk, self.memory = self.policy.act({**self.observation, TASK: ["one"]}, self.memory)
        self.notes = self.board.take_notes()
        self.observation, *_, self.infos = self.safe.step(chunk[:, 0])

    def told(self):
        return [json.loads(line)["event"] for line in self.events.path.read_text().splitlines()]

    def close(self):
        self.policy.close()
        self.safe.close()


@pytest.fixture
def session(tmp_path):
    made = Session(tmp_path)
    yield made
    HAND["fault"] = None
    made.close()
    assert not HAND["device"].connected


def drive(session, move):
    HAND.update(move=move, drives=True)
    until(lambda: session.infos["asked"][0, 0] == np.float32(move), session.step)


def test_who_drives_is_obeyed_and_noted(session):
    session.step()
    assert "person" not in session.notes
    session.arm.point[1] = 0.5
    drive(session, -0.5)
    assert session.notes["person"] == 1
    np.testing.assert_allclose(session.infos["sent"], [[-0.5, 0.0, 0.5]], atol=0.02)  # press is kept as the state y says
    asked_before = session.memory["policy"]["asked"][0]
    session.step()
    assert session.memory["policy"]["asked"][0] == asked_before  # the policy is not asked meanwhile
    HAND["drives"] = False
    until(lambda: not session.desk.taken, session.step)
    assert session.memory["policy"]["asked"][0] == 1  # it began anew
    session.step()
    assert "person" not in session.notes
    assert session.told() == ["taken_over", "given_back"]


def test_the_limits_hold_for_a_person_too(session):
    session.step()
    drive(session, 1.0)
    until(lambda: "clamped" in session.told(), session.step)
    for _ in range(20):
        session.step()
    assert session.arm.point[0] <= 0.5 + 1e-6
    HAND["move"] = 1.5
    until(lambda: "action_out_of_range" in session.told(), session.step)
    assert session.arm.holding


@pytest.mark.parametrize(("fault", "event"), [("raise", "teleop_lost"), ("hang", "teleop_late"), ("nan", "action_not_finite")])
@pytest.mark.parametrize("seed", range(4))
def test_a_device_that_fails_at_a_random_time_is_held_through(session, fault, event, seed):
    session.step()
    drive(session, 0.1)
    for _ in range(np.random.default_rng(seed).integers(20)):
        session.step()
    assert not session.arm.holding
    HAND["fault"], before = fault, len(session.told())
    until(lambda: event in session.told()[before:], session.step)
    assert session.arm.holding
    assert session.notes["person"] == 1
    HAND["fault"] = None
    until(lambda: not session.arm.holding, session.step)
    assert "over" in session.told()


def test_a_device_that_fails_while_the_policy_drives_disturbs_nobody(session):
    session.step()
    HAND["fault"] = "raise"
    asked = HAND["asked"]
    until(lambda: HAND["asked"] > asked + 2, session.step)
    assert not session.arm.holding
    assert session.told() == []


def test_a_key_takes_over_from_whom_does_not_tell(tmp_path):
    session = Session(tmp_path, chosen(tmp_path, "scripted_leader"))
    session.step()
    HAND["move"] = -0.25
    session.desk._typed.put("t")
    assert session.desk.typed() is None  # it is no instruction
    until(lambda: session.infos["asked"][0, 0] == -0.25, session.step)
    session.desk._typed.put("t")
    session.desk.typed()
    session.step()
    assert not session.desk.taken
    session.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": {"type": "of_nobody"}}, "'of_nobody' is unknown"),
        ({"device": {"type": "scripted_stick", "colour": 3}}, "colour"),
        ({"device": {"type": "scripted_stick", "broken": True}}, "no servo answers"),
        ({"device": {"type": "scripted_stick", "calibrated": False}}, "lerobot-calibrate"),
        ({"plugins": ["scripted_telop"]}, "scripted_telop"),
        ({"action": {**TELEOP["action"], "dx": {"feature": "y.vel"}}}, "'y.vel'"),
        ({"action": {**TELEOP["action"], "dx": {"feeture": "x.vel"}}}, "feeture"),
        ({"action": {**TELEOP["action"], "press": {"state": "z"}}}, "'z'"),
        ({"action": {"dx": {}, "dy": {}}}, "'press'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, changes, words):
    teleop = {**TELEOP, **changes}
    teleop["device"] = {**teleop["device"], "calibration_dir": str(tmp_path)}
    with pytest.raises(UserError, match=words) as mistake:
        Session(tmp_path, teleop)
    assert "\n" not in str(mistake.value)


def test_a_recording_knows_who_drove(tmp_path):
    """A person drives for longer than the instruction's time, which stands still meanwhile; then the policy has all of it."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("control", [f"out={tmp_path}/out", "instructions=[one]", "seconds=0.4", "priority=0"])
    OmegaConf.set_struct(config, False)
    config.policy = {"_target_": "toy_policy.ToyPolicy"}
    config.teleop = chosen(tmp_path, "scripted_stick")
    config.teleop.device.update({"drives": True, "move": -0.5})
    limits = {k: {n: list(v) if isinstance(v, tuple) else v for n, v in r.items()} for k, r in LIMITS.items()}
    safety = {**config.robot.safety, "stale_s": 5.0, "frozen_s": 5.0, "heartbeat_s": 1.0, "limits": limits}
    config.robot = {"world": {"_target_": "toy_arm.ToyArm", "hz": 50.0}, "safety": safety}
    before = len(ARMS)

    def give_back():
        until(lambda: len(ARMS) > before and sum(not isinstance(c, str) for c in ARMS[-1].log) > 30, seconds=300.0)
        HAND["drives"] = False

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    run(config, keyboard=None)
    thread.join()
    dataset = check(f"{config.out}/recording")
    control = zarr.open_group(f"{config.out}/recording", mode="r")["control"]
    person, held = control["person"][:].astype(bool), control["held"][:].astype(bool)
    assert np.count_nonzero(np.diff(person.astype(int)) == -1) == 1
    assert (person & ~held).sum() > 30
    assert (~person).sum() == 20
    corrected = dataset.vectors[ACTION][person & ~held]
    np.testing.assert_allclose(corrected, np.tile([-0.5, 0.0, 0.0], (len(corrected), 1)), atol=1e-6)
    assert np.all(dataset.vectors[ACTION][~person & ~held, 0] >= 0)  # the policy's
    assert np.all(control["chunk"][:][person] == -1)
    assert len(Windows(dataset, segments="corrections", batch_size=4, chunk=4)) == person.sum()


def test_a_leader_arm_is_followed(tmp_path):
    """Two SO-101 on two buses: what a hand does to the one, the other does, as fast as its limits let it."""
    with Bus() as bus, Bus(positions=(2048, 2148, 1948, 2048, 2048, 2048)) as leading:
        bus.calibrate(tmp_path, "so101")
        leading.calibrate(tmp_path, "so101_leader")
        overrides = [
            "robot=so101", f"robot.world.robot.port={bus.port}", f"robot.world.robot.calibration_dir={tmp_path}",
            "robot.world.robot.num_read_retries=4", "~robot.world.cameras", "~robot.world.robot.cameras",
            "teleop=so101_leader", f"teleop.device.port={leading.port}", f"teleop.device.calibration_dir={tmp_path}",
        ]  # fmt: skip
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("control", overrides)
        arm = instantiate(config.robot.world, _convert_="all")
        limits = OmegaConf.to_container(config.robot.safety.limits)
        policy = Still(arm.vla_spec)
        session = Session(tmp_path, OmegaConf.to_container(config.teleop), arm, limits, policy)
        session.desk.commands["t"]()
        far = 2048 + 600  # 0.92 rad
        leading.servos[1].position = far
        until(lambda: abs(bus.servos[1].position - far) < 4, session.step)
        steps = np.diff(bus.servos[1].goals[-200:])
        assert np.abs(steps).max() < 0.45 / (2 * np.pi / 4095)  # no leap, however far away the leader is
        assert bus.servos[2].position == pytest.approx(2148, abs=4)
        assert not leading.servos[1].registers[40]  # the hand moves it freely
        session.close()


class Still:
    """Stays where the arm is."""

    history = False

    def __init__(self, spec):
        self.spec = spec

    def begin(self, seeds):
        return {"seed": np.array(seeds)}

    def act(self, observation, memory):
        return observation[STATE][:, None], memory


def test_keys_of_a_terminal_drive_the_simulated_robot(tmp_path):
    ours, theirs = os.openpty()
    teleop = OmegaConf.to_container(OmegaConf.load(CONF / "teleop" / "keys.yaml"))
    teleop["device"] |= {"terminal": os.ttyname(theirs), "calibration_dir": str(tmp_path)}
    spec = Spec(state=STATE_ENTRIES, action=ACTION_ENTRIES, action_kind="relative_pose", control_hz=30.0)
    desk, board = Desk(tmp_path / "STOP", None), Board()
    events = Events(tmp_path / "events.jsonl", quiet=True)
    takeover = Takeover(Still(spec), teleop, spec, desk, board, events)
    state, said = np.zeros((1, len(STATE_ENTRIES)), np.float32), []
    state[0, -1] = -1.0  # the gripper is closed

    def act():
        chunk, _ = takeover.act({STATE: state}, takeover.begin([0]))
        said.append(chunk[0, 0].tolist())
        time.sleep(0.01)

    def press(keys):
        os.write(ours, keys)
        act()

    until(lambda: said and said[-1] == [0.5, 0.5, 0, 0, 0, 0, -1.0], lambda: press(b"dw"))
    until(lambda: said[-1] == [0, 0, 0, 0, 0, 0, -1.0], act)  # let go, but still taken
    press(b" ")
    until(lambda: said[-1][6] == 1.0, act)
    until(lambda: not desk.taken, act)
    takeover.close()
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_is_none_is_a_mistake(tmp_path):
    teleop = OmegaConf.to_container(OmegaConf.load(CONF / "teleop" / "keys.yaml"))
    teleop["device"] |= {"terminal": str(tmp_path / "tty"), "calibration_dir": str(tmp_path)}
    spec = Spec(state=STATE_ENTRIES, action=ACTION_ENTRIES, control_hz=30.0)
    with pytest.raises(UserError, match="No terminal"):
        Takeover(Still(spec), teleop, spec, Desk(tmp_path / "STOP", None), Board(), Events(tmp_path / "e", quiet=True))
