"""Worlds in other processes: they behave as a vector world should, and what goes wrong over there is told and mended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toy_worlds import PUSH, TOY, trajectory, worlds

from envs.elsewhere import Elsewhere
from envs.elsewhere.far import server
from vla.spec import UserError


def test_a_vector_world():
    with worlds() as world:
        observation, _ = world.reset(seed=3)
        assert world.observation_space.contains(observation)
        assert world.vla_spec.state[0].name == "x"
        assert world.action_space.shape == (2, 2)
        x = observation["observation.state"][:, 0]
        after, rewards, terminated, truncated, infos = world.step(PUSH)
        assert world.observation_space.contains(after)
        np.testing.assert_allclose(after["observation.state"][:, 0], x + [0.1, -0.05], atol=1e-6)
        np.testing.assert_allclose(rewards, -np.abs(after["observation.state"][:, 0] + 1), atol=1e-6)
        assert not (terminated | truncated | infos["success"]).any()
        assert (after["observation.images.static"] == 1).all()


def test_starts_depend_on_seeds_alone():
    with worlds() as world:
        x = world.reset(seed=3)[0]["observation.state"]
        assert x[0, 0] != x[1, 0]
        assert (world.reset()[0]["observation.state"] != x).any()
        np.testing.assert_array_equal(world.reset(seed=3)[0]["observation.state"], x)
        same = world.reset(options={"start": np.array([7, 7])})[0]["observation.state"]
        np.testing.assert_array_equal(same[0], same[1])


def test_worlds_are_reset_one_by_one_to_tasks_of_their_own():
    with worlds() as world:
        world.reset(seed=0, options={"task": np.array([0.0, 1.0])})
        assert [state.task for state in world.states()] == ["left", "right"]
        before, *_ = world.step(PUSH)
        mask = np.array([False, True])
        after, _ = world.reset(options={"reset_mask": mask, "task": np.zeros(2)})
        np.testing.assert_array_equal(after["observation.state"][0], before["observation.state"][0])
        assert after["observation.state"][1, 1] == 0
        assert [state.task for state in world.states([1])] == ["left"]


class At(Elsewhere):
    AT: ClassVar = {"x": 1}


def test_starts_can_be_given_in_numbers():
    world = At("toy", TOY, sys.executable, ["left", "right"], num_worlds=2)
    try:
        observation, _ = world.reset(options={"x": np.array([[0.25], [0.5]])})
        np.testing.assert_array_equal(observation["observation.state"][:, 0], [0.25, 0.5])
        world.step(PUSH)
        observation, _ = world.reset(options={"x": np.array([[0.0], [0.75]]), "reset_mask": np.array([False, True])})
        np.testing.assert_allclose(observation["observation.state"][:, 0], [0.35, 0.75], atol=1e-6)
        os.kill(world._processes[1].pid, signal.SIGKILL)
        np.testing.assert_allclose(trajectory(world, 1)[0, 1], [0.7, 1], atol=1e-6)
        saved = world.save()
        trajectory(world, 2)
        np.testing.assert_allclose(world.restore(saved)["observation.state"][:, 1], [2, 1])
        for wrong in (np.zeros((2, 2)), np.zeros(2), np.array([[0], [np.nan]])):
            with pytest.raises(UserError, match=r"reset option x has shape .*finite numbers a world, \(2, 1\)"):
                world.reset(options={"x": wrong})
    finally:
        world.close()


def test_what_a_world_tells():
    with worlds() as world:
        assert "told" in world.offers
        world.reset(seed=0)
        world.step(PUSH)
        world.reset(options={"reset_mask": np.array([False, True])})
        assert [outcome["told"] for outcome in world._outcomes] == [{"steps": 1}, {"steps": 0}]


def test_worlds_take_scenes_in_turn():
    with worlds(3, scene=["one", "two"]) as world:
        assert world.scenes == ("one", "two", "one")


def test_an_episode_that_has_ended_stands_still_and_stays_solved():
    with worlds(1, options={"length": 30}) as world:
        observation, _ = world.reset(seed=0, options={"task": np.array([1])})
        while not (step := world.step(observation["observation.expert"]))[2][0]:
            observation = step[0]
        assert world.states()[0].success
        assert world.states()[0].ended
        still, rewards, terminated, _, infos = world.step(PUSH[:1])
        np.testing.assert_array_equal(still["observation.state"], step[0]["observation.state"])
        assert terminated[0]
        assert infos["success"][0]
        assert rewards[0] == 0


def test_only_wanted_pictures_are_drawn():
    with worlds() as world:
        world.look(np.zeros(2, bool))
        world.reset(seed=0)
        world.step(PUSH)
        seen = world.observe(np.array([False, True]))["observation.images.static"]
        assert (seen[0] == 0).all()
        assert (seen[1] == 1).all()


def test_saved_worlds_go_on_as_they_would_have():
    with worlds() as world, worlds() as other:
        world.reset(seed=0, options={"task": np.array([0, 1])})
        trajectory(world, 4)
        saved = world.save()
        then = trajectory(world, 5)
        np.testing.assert_array_equal(other.restore(saved)["observation.state"][:, 1], [4, 4])
        assert [state.task for state in other.states()] == ["left", "right"]
        np.testing.assert_array_equal(trajectory(other, 5), then)


@pytest.mark.parametrize("when", ["step", "reset", "draw", "save"])
def test_a_killed_process_is_started_anew_where_it_was(when, capfd):
    with worlds() as world, worlds() as untouched:
        for each in (world, untouched):
            each.reset(seed=1)
            trajectory(each, 3)
        os.kill(world._processes[1].pid, signal.SIGKILL)
        if when == "reset":
            world.reset(options={"reset_mask": np.array([False, True]), "start": np.array([0, 5])})
            untouched.reset(options={"reset_mask": np.array([False, True]), "start": np.array([0, 5])})
        elif when == "draw":
            world.observe(np.ones(2, bool))
        elif when == "save":
            assert world.save() == untouched.save()
        np.testing.assert_array_equal(trajectory(world, 3), trajectory(untouched, 3))
        assert len(world.faults) == 1
        assert "world 1 of toy was killed by SIGKILL" in world.faults[0]
        assert "it is started anew (1 of 3)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("kill", r"world 0 of toy was killed by SIGKILL during step"),
        ("exit", r"world 0 of toy ended with status 7 during step \(its last words: the table fell over\)"),
        (
            "hang",
            r"world 0 of toy did not answer step within 0.3 s and was ended \(it was at File .*toy_far.py., line \d+ in go",
        ),
    ],
)
def test_what_goes_wrong_once_changes_nothing(wrong, words, tmp_path):
    options = {"wrong": wrong, "at": 4, "flag": str(tmp_path / "flag")}
    with worlds(1, options=options, limits={"step": 0.3}) as world, worlds(1) as untouched:
        for each in (world, untouched):
            each.reset(seed=1)
        np.testing.assert_array_equal(trajectory(world, 8, PUSH[:1]), trajectory(untouched, 8, PUSH[:1]))
        [fault] = world.faults
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(fault)


def test_what_goes_wrong_always_is_given_up():
    with worlds(1, options={"wrong": "kill", "at": 2}, restarts=2) as world:
        world.reset(seed=0)
        world.step(PUSH[:1])
        with pytest.raises(UserError, match="SIGKILL during step; it was started anew 2 times in this episode"):
            world.step(PUSH[:1])


def test_restarts_are_counted_by_episode(tmp_path):
    with worlds(1, restarts=1) as world:
        for episode in range(3):
            world.reset(seed=episode)
            os.kill(world._processes[0].pid, signal.SIGKILL)
            world.step(PUSH[:1])
        assert len(world.faults) == 3


def test_a_world_that_is_stopped_is_killed(monkeypatch):
    monkeypatch.setattr("envs.elsewhere.process.GRACE", 0.3)
    with worlds(1, options={"wrong": "stop", "at": 1}, limits={"step": 0.3}, restarts=0) as world:
        world.reset(seed=0)
        with pytest.raises(UserError, match=r"did not answer step within 0.3 s and was killed"):
            world.step(PUSH[:1])


def test_an_episode_that_does_not_repeat_itself_is_not_patched_up(tmp_path):
    """A simulator that draws from outside of its seed."""
    source = Path(TOY).read_text().replace("np.random.default_rng(seed).random()", "np.random.default_rng().random()")
    (tmp_path / "random_far.py").write_text(source)
    with worlds(1, adapter=str(tmp_path / "random_far.py")) as world:
        world.reset(seed=0)
        trajectory(world, 2, PUSH[:1])
        os.kill(world._processes[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match="does not repeat itself after 2 steps"):
            world.step(PUSH[:1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"python": "/nowhere/python"},
            r"wants the interpreter /nowhere/python, which is not there: run `make worlds NAME=toy`",
        ),
        ({"python": TOY}, r"toy_far.py cannot be started"),
        ({"adapter": "fancy"}, r"adapter 'fancy' is not there"),
        ({"versions": {"gymnasium": "0.1"}}, r"gymnasium is [\d.]+ there, 0.1 is needed"),
        ({"versions": {"no-such-package": "1"}}, r"no-such-package is not installed, 1 is needed"),
        ({"options": {"wrong": "open"}}, r"refuses open \(ValueError: no such table\)"),
        ({"options": {"colour": 1}}, r"unexpected keyword argument 'colour'"),
        ({"tasks": []}, r"0 tasks"),
    ],
)
def test_what_cannot_be_opened(changes, words):
    with pytest.raises(UserError, match=words), worlds(**changes):
        pass


def test_what_cannot_be_asked():
    with worlds() as world:
        with pytest.raises(UserError, match="was not reset yet"):
            trajectory(world, 1)
        with pytest.raises(UserError, match=r"world 1 of toy refuses reset .*no task 'lost'"):
            world.reset(options={"task": np.array([0, 2])})
        world.reset(seed=0)
        for options, words in (
            ({"robot_obs": 1}, "unknown reset option 'robot_obs'"),
            ({"task": np.array([0, 3])}, "task is .*from 0 to 2"),
            ({"start": np.array([0.5, 0])}, "start is "),
            ({"reset_mask": np.ones(3)}, r"mask has shape \(3,\)"),
        ):
            with pytest.raises(UserError, match=words):
                world.reset(options=options)
        with pytest.raises(UserError, match=r"actions have shape \(1, 2\): give \(2, 2\)"):
            world.step(PUSH[:1])
        with pytest.raises(UserError, match="action of world 1 is nan at spare"):
            world.step(np.array([[0, 0], [0, np.nan]]))
        with pytest.raises(UserError, match="1 saved worlds of toy: give the 2"):
            world.restore([b""])
        trajectory(world, 1)


def test_a_promise_that_is_not_kept():
    with (
        worlds(1, options={"shape": 1}) as world,
        pytest.raises(UserError, match=r"state has shape \(1,\), \(2,\) was promised"),
    ):
        world.reset(seed=0)


def far(tmp_path, body):
    """A program in the place of the interpreter, which does what it likes with the socket `link`."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport socket, struct, sys, time, msgpack, os\nlink = socket.socket(fileno=int(sys.argv[-2]))\n"
        "def send(message):\n    frame = msgpack.packb(message)\n    link.sendall(struct.pack('>I', len(frame)) + frame)\n"
        + body
    )
    path.chmod(0o755)
    return str(path)


SPEC = (
    "{'schema': 1, 'cameras': {}, 'state': [dict(name='x', unit='m')], 'action': [], 'environment_state': [], "
    "'action_kind': 'none', 'control_hz': 1.0, 'frame': ''}"
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("link.sendall(b'GET / HTTP/1.1\\r\\n' * 10)", r"answered open with a message of \d+ bytes and was killed"),
        ("link.sendall(b'\\0\\0\\0\\2\\xc1\\xc1')", r"answered open with no msgpack"),
        ("send([1, 2])", r"answered open with a list instead of a map"),
        ("send({'protocol': 2, 'spec': {}, 'offers': []})", r"ValueError: protocol 2, this side speaks 1"),
        ("send({'protocol': 1, 'spec': {'schema': 99}, 'offers': []})", r"spec schema is 99"),
        ("send({'protocol': 1, 'spec': {'schema': 1}, 'offers': []})", r"KeyError"),
        ("send({'protocol': 1, 'spec': 7, 'offers': []})", r"does not describe itself"),
        (f"send({{'protocol': 1, 'spec': {SPEC}, 'offers': []}})", r"its memory is not of 64 bytes"),
        ("link.close(); time.sleep(60)", r"closed the connection during open and was killed"),
        ("print('no numpy here'); sys.exit(1)", r"ended with status 1 during open \(its last words: no numpy here\)"),
    ],
)
def test_garbage_from_the_other_side(tmp_path, monkeypatch, body, words):
    monkeypatch.setattr("envs.elsewhere.process.GRACE", 1.0)
    python = far(tmp_path, body + "\ntime.sleep(0.5)\n")
    with pytest.raises(UserError, match=words) as told, worlds(1, python=python):
        pass
    assert "\n" not in str(told.value)


def test_a_server_of_another_version_refuses(tmp_path, monkeypatch):
    copy = tmp_path / "server.py"
    copy.write_text(Path(server.__file__).read_text().replace("PROTOCOL = 1", "PROTOCOL = 2"))
    monkeypatch.setattr("envs.elsewhere.process.server.__file__", str(copy))
    with pytest.raises(UserError, match="protocol 1 is asked for, this server speaks 2"), worlds(1):
        pass


def test_nothing_is_left_behind():
    with worlds() as world:
        world.reset(seed=0)
        pids = [process.pid for process in world._processes]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_far_side_ends_with_its_master():
    code = (
        "import sys; from envs.elsewhere import Elsewhere\n"
        f"world = Elsewhere('toy', {TOY!r}, sys.executable, ['left'])\n"
        "print(world._processes[0].pid, flush=True); import os; os._exit(9)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    status = Path(f"/proc/{int(out.stdout)}/stat")
    for _ in range(200):  # ten seconds, far more than it needs; it may stay a zombie of whoever adopts it
        if not status.exists() or status.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the far side lives on")


@given(arrays(np.float64, (2, 2), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_wild_actions(shared_world, actions):
    if np.isfinite(actions).all():
        assert np.isfinite(shared_world.step(actions)[0]["observation.state"]).all()
    else:
        with pytest.raises(UserError, match="give finite numbers"):
            shared_world.step(actions)


@pytest.fixture(scope="module")
def shared_world():
    with worlds(options={"length": 10**6}) as world:
        world.reset(seed=0)
        yield world
