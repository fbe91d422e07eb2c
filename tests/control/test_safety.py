"""Every fault of a robot or a policy, injected at random times, ends in a hold; limits clamp and say so."""

import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_arm import HZ, LIMITS, SPEC, PatientClock, ToyArm

from vla.control.cadence import Cadence
from vla.control.events import Board, Events
from vla.control.limits import Limits
from vla.control.paced import Paced
from vla.control.safety import Safe, Stopped
from vla.spec import UserError

GO = np.array([[0.2, 0.1, 1.0]])
ARM_FAULTS = (
    "state_not_finite", "state_out_of_limits", "too_fast", "stale_state", "stale_camera", "frozen_camera", "connection_lost",
)  # fmt: skip
ACTION_FAULTS = {"action_not_finite": np.nan, "action_out_of_range": 1.7}


@pytest.fixture
def make(tmp_path):
    """A safe world around a toy arm; give `stop` and other settings."""
    made = []

    def build(patient=True, **settings):
        number = len(made)
        events = Events(tmp_path / f"events-{number}.jsonl", quiet=True)
        defaults = {"stale_s": 1.0, "frozen_s": 0.03, "heartbeat_s": 30.0, "give_up_s": 60.0, "stop": ()}
        arm = ToyArm()
        made.append(Safe(Paced(arm, Cadence()), Limits(SPEC, **LIMITS), events, Board(), **{**defaults, **settings}))
        made[-1].arm = arm
        if patient:
            made[-1].world.clock = PatientClock(HZ)
        made[-1].reset()
        return made[-1]

    yield build
    for safe in made:
        safe.close()
        assert safe.arm.closed


def told(safe, name=None):
    rows = [json.loads(line) for line in safe.events.path.read_text().splitlines()]
    return [row for row in rows if name in (None, row["event"])]


def until(condition, step, most=400):
    for _ in range(most):
        if condition():
            return
        step()
    raise AssertionError("what was waited for did not come")


def keep_on(safe, action):
    for _ in range(1000):
        safe.step(action)


@pytest.mark.parametrize("fault", ARM_FAULTS)
@pytest.mark.parametrize("seed", range(12))
def test_a_fault_of_the_arm_at_a_random_time_is_held_through(make, fault, seed):
    safe, rng = make(), np.random.default_rng([seed, ARM_FAULTS.index(fault)])
    for _ in range(rng.integers(1, 8)):
        safe.step(GO)
    assert not safe.arm.holding
    safe.arm.fault = fault
    until(lambda: told(safe, fault), lambda: safe.step(GO))
    if fault == "connection_lost":
        safe.arm.fault, safe._retry = None, 0
    else:
        assert safe.arm.holding  # in the very step in which it was seen
        safe.step(GO)
        assert fault == "too_fast" or safe.arm.holding
        safe.arm.fault = None
    until(lambda: not safe.active and not safe.arm.holding, lambda: safe.step(GO))
    assert fault in [row["fault"] for row in told(safe, "over")]


@pytest.mark.parametrize("fault", ACTION_FAULTS)
@pytest.mark.parametrize("seed", range(25))
def test_a_wild_action_at_a_random_time_is_a_hold_for_one_step(make, fault, seed):
    safe, rng = make(), np.random.default_rng(seed)
    for _ in range(rng.integers(1, 8)):
        safe.step(GO)
    wild = GO.copy()
    wild[0, rng.integers(3)] = ACTION_FAULTS[fault] * rng.choice([-1, 1])
    *_, infos = safe.step(wild)
    assert safe.arm.holding
    assert infos["held"]
    np.testing.assert_array_equal(infos["asked"], wild.astype(np.float32))
    np.testing.assert_array_equal(infos["sent"], [[0, 0, 0]])
    safe.step(GO)
    assert not safe.arm.holding
    assert [row["event"] for row in told(safe)] == [fault, "over"]


@pytest.mark.parametrize("fault", [*ARM_FAULTS, *ACTION_FAULTS])
@pytest.mark.parametrize("seed", range(5))
def test_a_fault_that_stops_ends_the_run_holding(make, fault, seed):
    safe, rng = make(stop=(fault,)), np.random.default_rng(seed)
    for _ in range(rng.integers(1, 8)):
        safe.step(GO)
    action = np.full((1, 3), ACTION_FAULTS.get(fault, 0.1))
    safe.arm.fault = fault
    with pytest.raises(Stopped, match=fault):
        keep_on(safe, action)
    commands = len(safe.arm.log)
    assert fault == "connection_lost" or safe.arm.holding
    assert told(safe, "stopped")[0]["fault"] == fault
    assert len(safe.arm.log) == commands


@pytest.mark.parametrize("seed", range(10))
def test_an_exception_of_the_driver_ends_the_run_holding(make, seed):
    safe = make()
    for _ in range(seed % 5):
        safe.step(GO)
    safe.arm.fault = "driver"
    with pytest.raises(Stopped, match="exception"):
        safe.step(GO)
    assert safe.arm.holding
    assert "motor 3" in told(safe, "exception")[0]["error"]


def test_a_fault_that_does_not_end_is_given_up(make):
    safe = make(give_up_s=0.05)
    safe.arm.fault = "stale_state"
    with pytest.raises(Stopped, match="stale_state"):
        keep_on(safe, GO)
    assert safe.arm.holding


@pytest.mark.parametrize("name", ["policy_dead", "policy_late", "recorder_dead"])
def test_what_is_demanded_on_the_board_is_held(make, name):
    safe = make(stop=("policy_dead",))
    safe.step(GO)
    safe.board.demand(name, why="a test")
    if name == "policy_dead":
        with pytest.raises(Stopped, match=name):
            safe.step(GO)
    else:
        safe.step(GO)
    assert safe.arm.holding
    assert told(safe, name)[0]["why"] == "a test"


def test_waiting_is_a_hold_and_no_fault(make):
    safe = make()
    safe.board.demand("waiting")
    *_, infos = safe.step(GO)
    assert safe.arm.holding
    assert infos["held"]
    assert told(safe) == []


def test_a_loop_that_hangs_is_held_by_the_heart(make):
    safe = make(heartbeat_s=0.05)
    safe.step(GO)
    assert not safe.arm.holding
    until(lambda: safe.arm.holding, lambda: time.sleep(0.01))  # nobody steps
    assert told(safe, "heartbeat")[0]["seconds"] >= 0.05
    until(lambda: not safe.active and not safe.arm.holding, lambda: safe.step(GO))
    assert told(safe, "heartbeat")
    assert told(safe, "over")[0]["fault"] == "heartbeat"


def test_a_driver_that_hangs_is_told_by_the_heart(make):
    safe = make(heartbeat_s=0.05)
    safe.step(GO)
    safe.arm.delay = 0.5
    thread = threading.Thread(target=lambda: safe.step(GO))
    thread.start()
    until(lambda: told(safe, "heartbeat"), lambda: time.sleep(0.01))
    assert safe.arm.holding
    safe.arm.delay = 0.0
    thread.join()


def test_an_action_for_a_cycle_that_is_over_is_not_sent(make):
    safe = make(patient=False)
    safe.step(GO)
    time.sleep(3 / SPEC.control_hz)
    safe.step(GO)
    assert safe.arm.holding
    assert told(safe, "action_late")[0]["milliseconds"] >= 1e3 / SPEC.control_hz


def test_clamping_tells_what_was_asked_and_sent(make):
    safe = make()
    until(lambda: safe.arm.point[0] > 0.46, lambda: safe.step(np.array([[1.0, 0, 0]])))
    rows = []
    for _ in range(10):
        *_, infos = safe.step(np.array([[1.0, 0, 0]]))
        rows.append((float(infos["asked"][0, 0]), float(infos["sent"][0, 0]), infos["held"]))
    assert safe.arm.point[0] <= 0.5 + 1e-6
    assert rows[-1] == (1.0, 0.0, False)
    assert told(safe, "clamped")[0]["dx"]["asked"] == 1.0
    safe.step(np.array([[-1.0, 0, 0]]))
    assert safe.arm.point[0] < 0.5


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60), st.floats(-0.7, 0.7), st.floats(0, 1))
def test_targets_never_leave_the_workspace_but_inwards(actions, start, follows):
    """Whatever is asked and however far the arm lags behind, no target lies outside, or farther outside than before."""
    limits = Limits(SPEC, **LIMITS)
    here = target = start
    for asked in actions:
        sent, _ = limits.clamp(np.array([asked, 0.0, 0.0]), np.array([here, 0.0]))
        target = float(np.clip(target, here - 0.05, here + 0.05)) + 0.01 * sent[0]
        assert abs(target) <= max(0.5, abs(start)) + 1e-9
        here += follows * (target - here)


@given(st.floats(-3, 3), st.floats(-1, 1))
def test_absolute_targets_stay_in_reach_and_range(asked, here):
    limits = Limits(SPEC, action={"dx": {"state": "x", "low": -0.8, "high": 0.8, "step": 0.1}})
    sent, clamps = limits.clamp(np.array([asked, 0, 0]), np.array([here, 0]))
    assert -0.8 <= sent[0] <= 0.8
    assert abs(here) > 0.7 or abs(sent[0] - here) <= 0.1 + 1e-9
    assert bool(clamps) == (abs(sent[0] - asked) > 1e-6)


def test_an_unknown_name_in_the_limits_is_a_mistake():
    with pytest.raises(UserError, match="'jiont_1'"):
        Limits(SPEC, state={"jiont_1": (0, 1)})
