"""Whole sessions with real processes: whatever happens, the arm ends up holding and the recording can be read."""

import json
import multiprocessing
import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from omegaconf import OmegaConf
from rerun.experimental import RrdReader
from toy_arm import ARMS, LIMITS

from vla.control.run import run
from vla.data.store import check
from vla.data.windows import Windows
from vla.spec import ACTION, UserError

FIVE = ["one", "two", "three", "four", "five"]


@pytest.fixture
def config(tmp_path):
    return OmegaConf.create(
        {
            "out": str(tmp_path / "out"),
            "checkpoint": None,
            "override": {},
            "policy": {"_target_": "toy_policy.ToyPolicy"},
            "robot": {
                "world": {"_target_": "toy_arm.ToyArm", "hz": 50.0},
                "safety": {
                    "stale_s": 5.0, "frozen_s": 5.0, "heartbeat_s": 0.5, "give_up_s": 5.0,
                    "stop": ["connection_lost", "policy_dead", "recorder_dead"],
                    "limits": {k: {n: list(v) if isinstance(v, tuple) else v for n, v in r.items()} for k, r in LIMITS.items()},
                },
            },
            "instructions": ["one"], "seconds": 60, "stay": False, "refuse": False, "seed": 0, "priority": 0,
            "executor": {"_target_": "vla.executor.RecedingHorizon", "execute": 5}, "delay_ms": 0,
            "imagine": True, "view": None,
            "replay": {"path": None, "episode": 0},
        }
    )  # fmt: skip


def when_moving(act, actions=20):
    """Do something from another thread once the newest arm was sent so many actions; wild times come from the caller."""
    before = len(ARMS)

    def wait():
        while len(ARMS) == before or sum(not isinstance(c, str) for c in ARMS[-1].log) < actions:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def child(name):
    """Process id of this process's child of that name."""
    return next(p.pid for p in multiprocessing.active_children() if p.name == name)


def ended_well(config, table):
    """The arm holds and is closed, nothing is left running, and the recording is whole; gives the recording."""
    assert ARMS[-1].closed
    assert ARMS[-1].holding
    assert json.loads(Path(config.out, "cadence.json").read_text())["ended"] == table["ended"]
    return check(f"{config.out}/recording")


def names(config):
    return [json.loads(line)["event"] for line in Path(config.out, "events.jsonl").read_text().splitlines()]


def test_five_instructions_leave_a_dataset_that_training_reads(config):
    config.instructions, config.seconds = FIVE, 0.6
    table = run(config, keyboard=None)
    dataset = ended_well(config, table)
    assert table["ended"] == "all instructions are done"
    assert dataset.instructions == ["", *sorted(FIVE)]
    assert dataset.num_episodes == 5
    assert dataset.num_frames == 5 * 30
    batch = Windows(dataset, batch_size=8, chunk=4).batch(0)
    assert batch["action"].shape == (8, 1, 4, 3)
    control = zarr.open_group(f"{config.out}/recording", mode="r")["control"]
    held = control["held"][:].astype(bool)
    assert 0 < held.sum() < len(held)  # every instruction begins by waiting for its first chunk
    np.testing.assert_array_equal(dataset.vectors[ACTION][held], 0)
    np.testing.assert_allclose(dataset.vectors[ACTION][~held], control["asked"][:][~held], atol=1e-6)
    assert np.all(control["sent_ns"][:] >= control["time_ns"][:])
    assert np.all((control["chunk"][:] >= 0)[~held])
    place = control["chunk_index"][:][~held]
    np.testing.assert_allclose(dataset.vectors[ACTION][~held][:, 0], place / 100, atol=1e-6)  # the action that was due
    assert np.all(control["inference_ms"][:][~held] > 0)
    events = [json.loads(text) for text in control["events"][:]]
    assert len(events) == 5
    assert table["milliseconds"]["inference"]["count"] > 5
    assert table["cycles"] + table["missed"] >= 150


def test_what_is_typed_is_followed_and_marked(config):
    reading, writing = os.pipe()
    config.stay = True

    def type_in():
        for line in ("two", "y", "three", "n", ""):
            when_moving_again(len(ARMS[-1].log) + 15)
            os.write(writing, f"{line}\n".encode())

    def when_moving_again(count):
        while len(ARMS[-1].log) < count:
            time.sleep(0.005)

    when_moving(type_in)
    table = run(config, keyboard=reading)
    dataset = ended_well(config, table)
    assert table["ended"] == "the Enter key"
    assert dataset.num_episodes == 3
    assert dataset.instructions == ["", "one", "two"]  # three has failed: frames, but no label
    success = zarr.open_group(f"{config.out}/recording", mode="r")["control/success"][:]
    assert [int(success[end - 1]) for end in dataset.episode_ends] == [-1, 1, 0]
    assert "ready" in names(config)


def test_a_rule_marks_what_is_done_and_what_is_not(config):
    config.robot.check = {"_target_": "toy_policy.HundredCommands"}
    config.instructions, config.seconds = ["one", "my own words", "three"], 3.0
    table = run(config, keyboard=None)
    dataset = ended_well(config, table)
    success = zarr.open_group(f"{config.out}/recording", mode="r")["control/success"][:]
    assert [int(success[end - 1]) for end in dataset.episode_ends] == [1, -1, 0]
    assert dataset.episode_ends[0] < 150  # it went on as soon as it was done
    assert dataset.tasks == ["", "go_one"]


def test_what_the_policy_imagines_is_recorded_and_shown(config):
    config.policy = {"_target_": "toy_policy.Imagining"}
    config.seconds, config.view = 1.0, f"{config.out}/seen.rrd"
    dataset = ended_well(config, run(config, keyboard=None))
    control = zarr.open_group(f"{config.out}/recording", mode="r")["control"]
    counts = control["imagined/static"][:, 0, 0, 0]  # the pictures say which chunk they belong to
    assert len(counts) > 3
    np.testing.assert_array_equal(counts, np.arange(1, len(counts) + 1))
    cycles = control["cycle_ns"][:]
    for count, due in zip(counts, control["imagined_ns"][:], strict=True):
        used = cycles[control["chunk"][:] == count]
        assert not len(used) or due > used[0] - 20e6 * 12  # three cycles after the observation that was asked about
    shown = [chunk.num_rows for chunk in RrdReader(config.view).stream() if chunk.entity_path == "/cameras/static"]
    assert sum(shown) == dataset.num_frames


@pytest.mark.parametrize("way", ["SIGINT", "SIGTERM", "file"])
def test_a_stop_ends_the_run_holding(config, way):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    os.makedirs(config.out)
    open(f"{config.out}/STOP", "w").close()  # from before: it does not count
    stop = (
        (lambda: open(f"{config.out}/STOP", "w").close())
        if way == "file"
        else lambda: os.kill(os.getpid(), signal.Signals[way])
    )
    when_moving(stop)
    table = run(config, keyboard=None)
    dataset = ended_well(config, table)
    assert way in table["ended"]
    assert table["fault"] is None
    assert dataset.num_episodes == 1
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("actions", [3, 25])
@pytest.mark.parametrize(("process", "fault"), [("policy", "policy_dead"), ("recorder", "recorder_dead")])
def test_a_killed_process_ends_the_run_holding(config, process, fault, actions):
    config.instructions, config.seconds = [*["one"] * 3, *["two"] * 100], 0.3
    when_moving(lambda: os.kill(child(process), signal.SIGKILL), actions)
    table = run(config, keyboard=None)
    assert table["fault"] == fault
    assert names(config).count(fault) == 1
    if process == "policy":
        ended_well(config, table)
    else:
        assert ARMS[-1].closed
        assert ARMS[-1].holding
        group = Path(config.out, "recording", "zarr.json")
        made = json.loads(group.read_text())["attributes"] if group.exists() else {}
        if made.get("committed", {}).get("episodes"):  # the kill may come before the first commit
            check(f"{config.out}/recording")


@pytest.mark.parametrize(("sentence", "fault"), [("raise", "policy_dead"), ("hang", "policy_late")])
def test_a_policy_that_fails_ends_the_run_holding(config, sentence, fault):
    config.instructions = [sentence]
    config.robot.safety.give_up_s = 0.5
    table = run(config, keyboard=None)
    ended_well(config, table)
    assert table["fault"] == fault


@pytest.mark.parametrize(("sentence", "fault"), [("nan", "action_not_finite"), ("wild", "action_out_of_range")])
def test_a_policy_that_goes_wild_is_held_through(config, sentence, fault):
    config.instructions, config.seconds = [sentence], 1.2
    table = run(config, keyboard=None)
    ended_well(config, table)
    assert table["fault"] is None
    assert fault in names(config)
    sent = np.array([c for c in ARMS[-1].log if not isinstance(c, str)])
    assert np.abs(sent).max() <= 1


def test_frames_that_pile_up_end_the_run_and_are_still_written(config, monkeypatch):
    monkeypatch.setattr("vla.control.recording.BACKLOG", 20)

    def stall():
        recorder = child("recorder")
        os.kill(recorder, signal.SIGSTOP)
        while "recorder_dead" not in names(config):
            time.sleep(0.05)
        os.kill(recorder, signal.SIGCONT)

    when_moving(stall)
    table = run(config, keyboard=None)
    ended_well(config, table)
    assert table["fault"] == "recorder_dead"


def test_an_exception_in_the_loop_ends_it_holding(config, monkeypatch):
    def fail(self):
        raise ZeroDivisionError("in the loop")

    when_moving(lambda: monkeypatch.setattr("vla.control.desk.Desk.typed", fail))
    with pytest.raises(ZeroDivisionError):
        run(config, keyboard=None)
    assert ARMS[-1].closed
    assert ARMS[-1].holding
    assert "exception" in names(config)
    check(f"{config.out}/recording")


def test_a_lost_robot_ends_the_run_with_a_whole_recording(config):
    when_moving(lambda: setattr(ARMS[-1], "fault", "connection_lost"))
    table = run(config, keyboard=None)
    assert table["fault"] == "connection_lost"
    check(f"{config.out}/recording")


def test_a_replay_sends_the_same_actions(config, tmp_path):
    config.seconds = 0.6
    dataset = ended_well(config, run(config, keyboard=None))
    recorded = dataset.vectors[ACTION]
    config.replay.path, config.out = f"{config.out}/recording", str(tmp_path / "replayed")
    config.robot.world.hz = 10.0
    with pytest.raises(UserError, match="control_hz is 50"):
        run(config, keyboard=None)
    config.robot.world.hz = 50.0
    replayed = ended_well(config, run(config, keyboard=None))
    control = zarr.open_group(f"{config.out}/recording", mode="r")["control"]
    held = control["held"][:].astype(bool)
    np.testing.assert_allclose(replayed.vectors[ACTION][~held], recorded[~held], atol=1e-6)
    assert replayed.instructions == ["", "one"]


def test_a_replay_of_nothing_is_a_mistake(config):
    config.seconds = 0.2
    run(config, keyboard=None)
    config.replay = {"path": f"{config.out}/recording", "episode": 7}
    with pytest.raises(UserError, match="episode 7 is not in"):
        run(config, keyboard=None)


def test_a_policy_that_cannot_be_built_moves_nothing(config):
    config.policy = {"_target_": "toy_policy.Unbuildable"}
    with pytest.raises(RuntimeError, match="no such weights"):
        run(config, keyboard=None)
    assert ARMS[-1].log == []


def test_a_policy_for_another_robot_moves_nothing(config):
    config.policy.hz = 30.0
    with pytest.raises(UserError, match="control_hz is 30"):
        run(config, keyboard=None)
    assert ARMS[-1].log == []


def test_every_observation_reaches_a_policy_with_history(config):
    config.policy.history, config.seconds = True, 1.0
    dataset = ended_well(config, run(config, keyboard=None))
    control = zarr.open_group(f"{config.out}/recording", mode="r")["control"]
    first = {int(c): k for k, c in reversed(list(enumerate(control["chunk"][:])))}
    seen = {c: round(dataset.vectors[ACTION][k, 2] * 10_000) for c, k in first.items() if c > 0}
    asked = sorted(seen)
    assert all(seen[b] - seen[a] >= 5 for a, b in pairwise(asked))  # more than were asked about
