"""The genuine CALVIN as a world. What needs CALVIN's code is skipped where `make calvin` has not put it."""

import contextlib
import os
import runpy
import signal
import subprocess
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

import envs.playtable as playtable
from envs.elsewhere.calvin import REVISIONS, Benchmark, Calvin
from envs.elsewhere.world import HERE, ROOT
from envs.playtable import layout as L
from envs.playtable.chains import evaluation_chains
from envs.playtable.experts import Expert
from envs.playtable.play import Play
from envs.playtable.tasks import from_calvin_info, solved
from vla.evaluation.long_horizon import evaluate
from vla.executor import RecedingHorizon
from vla.spec import ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, TASK, UserError, require_match

FAR = HERE / "far" / "calvin.py"
CHECKOUTS = ROOT / ".worlds" / "calvin_env"
PYTHON = ROOT / ".worlds" / "calvin" / "bin" / "python"
UNMENDED = {"actions": False, "history": False, "led": False}
genuine = pytest.mark.skipif(
    not (PYTHON.exists() and all((CHECKOUTS / r / "calvin_env").is_dir() for r in REVISIONS)),
    reason="CALVIN's code is not here: make calvin CALVIN_ROOT=<a clone of mees/calvin or mees/calvin_env>",
)


@contextlib.contextmanager
def calvin(num_worlds=1, **changes):
    world = Calvin(num_worlds=num_worlds, **{"cameras": {}, **changes})
    try:
        yield world
    finally:
        world.close()


@pytest.fixture(scope="module")
def world():
    """One world of scene D without pictures, for whoever resets it."""
    with calvin() as made:
        yield made


def begin(world, start):
    options = {name: np.tile(row, (world.num_envs, 1)) for name, row in start.items()}
    return world.reset(options=options)[0]


def sweep(steps=90):
    """Actions (T, 7) that go down beside the blue block of the first chain's start, push it, and stir about."""
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 0.6, (steps, 7))
    actions[:, 3:6] *= 0.3
    actions[:12, :6] = [0.85, 0.3, -0.45, 0, 0, 0]
    actions[12:26, :6] = [0, 0.5, 0, 0, 0, 0]
    actions[:, 6] = np.where(np.arange(steps) // 20 % 2, 1, -1)
    return actions


def trajectory(world, actions):
    """What world 0 observes in each step, state and scene (T, 39)."""
    seen = [world.step(np.tile(action, (world.num_envs, 1)))[0] for action in actions]
    return np.array([np.r_[o[STATE][0], o[ENVIRONMENT_STATE][0]] for o in seen])


def perform(world, task, steps=240):
    """Let the expert do one task in world 0; the number of steps until the oracle says so, or None."""
    expert, start = Expert(), world.states()[0]
    observation = world.observe(np.zeros(world.num_envs, bool))
    for step in range(steps):
        chunk, _ = expert.act({**observation, TASK: [task] * world.num_envs}, None)
        observation, *_ = world.step(chunk[:, 0])
        if task in solved(start, world.states()[0], [task]):
            return step + 1
    return None


def ask(what, revision=REVISIONS[0], **rest):
    """An answer of CALVIN's own code: see genuine_calvin.py."""
    script = Path(__file__).with_name("genuine_calvin.py")
    request = msgpack.packb({"what": what, **rest})
    command = [str(PYTHON), "-I", str(script), str(CHECKOUTS / revision)]
    done = subprocess.run(command, input=request, capture_output=True, timeout=1200, check=True)
    return msgpack.unpackb(done.stdout.split(b"ANSWER")[1].split(b"disconnecting id")[0])


def test_the_config_is_what_make_installs():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("evaluate", overrides=["env=calvin"]).env
    lines = (HERE / "far" / "requirements" / "calvin.txt").read_text().split()
    assert dict(line.split("==") for line in lines if "==" in line) == dict(config.world.versions)
    assert {"msgpack"} <= set(lines)
    assert ROOT / config.world.python == PYTHON
    assert ROOT / config.world.root == CHECKOUTS
    assert config.world.revision in REVISIONS
    assert dict(config.world.mends) == dict.fromkeys(UNMENDED, True)
    benchmark = instantiate(config.benchmark)
    assert benchmark.name == "calvin"
    assert [chain.tasks for chain in benchmark.chains(5)] == [chain.tasks for chain in evaluation_chains(5)]
    assert isinstance(instantiate(config.play), Play)


def test_the_far_side_says_what_the_playtable_says():
    there, here = runpy.run_path(str(FAR))["World"], playtable.make("D", 1, cameras={})
    for kind in ("state", "action", "environment_state"):
        wanted = [
            (e.name, e.unit, e.low, e.high) if kind == "action" else (e.name, e.unit) for e in getattr(here.vla_spec, kind)
        ]
        assert list(getattr(there, kind)) == wanted
    for name in ("action_kind", "control_hz", "frame"):
        assert getattr(there, name) == getattr(here.vla_spec, name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root": "nowhere"}, r"CALVIN's code is not in .*nowhere/1431a46: run `make calvin CALVIN_ROOT=<your clone"),
        ({"revision": "4b2798c"}, r"revision is '4b2798c': use one of 1431a46, 797142c"),
        ({"renderer": "raster"}, r"renderer is 'raster'"),
        ({"scene": "DE"}, r"unknown scene 'E'"),
        ({"scene": ""}, r"scene is empty"),
    ],
)
def test_what_cannot_be_asked_for(changes, words):
    with pytest.raises(UserError, match=words), calvin(**changes):
        pass


def test_only_what_was_published_is_run(tmp_path):
    require = runpy.run_path(str(FAR))["require_published"]
    with pytest.raises(ValueError, match="no revision '4b2798c'"):
        require(str(tmp_path), "4b2798c")
    with pytest.raises(ValueError, match="no git checkout of CALVIN's 1431a46"):
        require(str(tmp_path), "1431a46")
    inside = ROOT / "envs"  # in a git checkout, but not one of its own
    with pytest.raises(ValueError, match="no git checkout of CALVIN's 1431a46"):
        require(str(inside), "1431a46")


def test_make_says_what_it_wants():
    for words, told in ((["calvin", "CALVIN_ROOT=/nowhere"], "/nowhere"), (["worlds", "NAME=calvin"], "make calvin")):
        done = subprocess.run(["make", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert told in done.stdout


@genuine
def test_a_start_is_the_playtables():
    cameras = {"static": (50, 50), "wrist": (42, 42)}
    with calvin(4, scene="ABCD", cameras=cameras) as there:
        here = playtable.make("ABCD", 4, cameras=cameras)
        require_match(here.vla_spec, there.vla_spec, "the playtable", "CALVIN")
        play, rng = Play(), np.random.default_rng(0)
        starts = [play.start(rng, scene, {}) for scene in "ABCD"]
        options = {name: np.stack([start[name] for start in starts]) for name in starts[0]}
        seen, wanted = there.reset(options=options)[0], here.reset(options=options)[0]
        assert there.observation_space.contains(seen)
        assert seen.keys() == wanted.keys()
        np.testing.assert_array_equal(seen["observation.scene"], wanted["observation.scene"])
        np.testing.assert_allclose(seen[STATE][:, :3], wanted[STATE][:, :3], atol=1e-3)
        np.testing.assert_allclose(seen[STATE][:, 6:], wanted[STATE][:, 6:], atol=1e-3)
        np.testing.assert_allclose(seen[ENVIRONMENT_STATE][:, :6], wanted[ENVIRONMENT_STATE][:, :6], atol=1e-3)
        for k, (a, b) in enumerate(zip(there.states(), here.states(), strict=True)):
            assert a.blocks.keys() == b.blocks.keys()
            for colour in a.blocks:
                np.testing.assert_allclose(a.blocks[colour].position, b.blocks[colour].position, atol=2e-3, err_msg=str(k))
        for camera in cameras:
            assert seen[IMAGE_PREFIX + camera].std((1, 2)).min() > 5
    here.close()


@genuine
@pytest.mark.parametrize("revision", REVISIONS)
def test_unmended_it_is_what_the_published_code_gives(revision):
    chain, actions = evaluation_chains(1)[0], sweep()
    start = {"robot_obs": chain.robot_obs.tolist(), "scene_obs": chain.scene_obs.tolist()}
    published = ask("play", revision, **start, actions=actions.tolist())
    with calvin(revision=revision, mends=UNMENDED, cameras={"static": (200, 200), "wrist": (84, 84)}) as world:
        world.look(np.zeros(1, bool))
        begin(world, chain.start)
        seen = trajectory(world, actions)
        np.testing.assert_array_equal(seen[:, :15], published["state"][1:])
        np.testing.assert_array_equal(seen[:, 15:], published["scene"][1:])
        assert np.abs(seen[-1, 15:] - seen[0, 15:]).max() > 0.02
        pictures = world.observe(np.ones(1, bool))
        for camera in ("static", "wrist"):
            assert pictures[IMAGE_PREFIX + camera][0].tobytes() == published[camera]
    with calvin(revision=revision) as mended:
        begin(mended, chain.start)
        np.testing.assert_array_equal(trajectory(mended, actions), seen)


@genuine
def test_a_reset_leaves_no_trace(world):
    chain, actions = evaluation_chains(1)[0], sweep()
    begin(world, chain.start)
    first = trajectory(world, actions)
    begin(world, evaluation_chains(9)[8].start)
    trajectory(world, actions[:20])
    again = begin(world, chain.start)
    assert again[STATE][0, 14] == 1
    np.testing.assert_array_equal(trajectory(world, actions), first)
    closed = {**chain.start, "robot_obs": np.r_[chain.robot_obs[:14], -1]}
    assert begin(world, closed)[STATE][0, 14] == -1
    with calvin(mends={"history": False}) as leaking:
        begin(leaking, chain.start)
        np.testing.assert_array_equal(trajectory(leaking, actions), first)
        stale = begin(leaking, chain.start)[STATE][0, 14]
        assert stale == actions[-1, 6] == -1
        assert (trajectory(leaking, actions) != first).any()


@genuine
def test_random_starts_depend_on_seeds_alone(world):
    first = world.reset(seed=5)[0][ENVIRONMENT_STATE]
    other = world.reset(seed=6)[0][ENVIRONMENT_STATE]
    assert (other != first).any()
    np.testing.assert_array_equal(world.reset(seed=5)[0][ENVIRONMENT_STATE], first)
    assert world.states()[0].led is False


def lit_start():
    """The start of the first chain that has the LED on."""
    return next(chain.start for chain in evaluation_chains(20) if chain.scene_obs[5] == 1)


@genuine
def test_the_first_press_of_the_button_switches_a_lit_led_off(world):
    begin(world, lit_start())
    assert perform(world, "turn_off_led")
    assert not world.states()[0].led
    with calvin(mends={"led": False}) as published:
        begin(published, lit_start())
        start, pressed = published.states()[0], 0
        expert, observation = Expert(), published.observe(np.zeros(1, bool))
        for _ in range(120):
            before = published.states()[0].button
            observation, *_ = published.step(expert.act({**observation, TASK: ["turn_off_led"]}, None)[0][:, 0])
            pressed += before <= 0.01 < published.states()[0].button
            if pressed == 2:
                break
            assert published.states()[0].led  # the first press turns on what is lit
        assert start.led
        assert not published.states()[0].led


@genuine
def test_a_plain_reset_after_a_lit_led_does_not_swallow_a_press():
    """The slip of 797142c, which takes the button's state from the light before the light is reset."""
    press = {}
    for mended in (True, False):
        with calvin(revision="797142c", mends={"led": mended, "history": False}) as world:
            begin(world, lit_start())
            world.reset(seed=0)
            assert not world.states()[0].led
            press[mended] = perform(world, "turn_on_led")
    assert press[True]
    assert press[False] is None or press[False] > press[True]


@genuine
@pytest.mark.parametrize(
    ("revision", "mended", "scaled"), [("1431a46", False, True), ("1431a46", True, False), ("797142c", False, False)]
)
def test_whether_the_callers_action_is_scaled(revision, mended, scaled):
    with calvin(revision=revision, mends={"actions": mended}) as world:
        begin(world, evaluation_chains(1)[0].start)
        actions = np.ones((1, 7))
        world.step(actions)
        np.testing.assert_allclose(actions[0], [0.02] * 3 + [0.05] * 3 + [1] if scaled else 1)


@genuine
def test_the_oracle_and_ours_see_the_same_tasks(world):
    tasks = ("rotate_blue_block_right", "lift_blue_block_table", "place_in_drawer", "close_drawer", "turn_off_lightbulb")
    begin(world, next(c.start for c in evaluation_chains(50) if c.initial["drawer"] == "open" and c.initial["lightbulb"]
                      and c.initial["blue_block"] == "table"))  # fmt: skip
    pairs = []
    for task in tasks:
        start, expert = world.info(0), Expert()
        observation = world.observe(np.zeros(1, bool))
        for step in range(200):
            observation, *_ = world.step(expert.act({**observation, TASK: [task]}, None)[0][:, 0])
            done = solved(from_calvin_info(start), world.states()[0], [task])
            if step % 5 == 0 or done:
                pairs.append((start, world.info(0)))
            if done:
                break
    ours = [sorted(solved(from_calvin_info(start), from_calvin_info(end))) for start, end in pairs]
    assert len({task for each in ours for task in each}) >= 4
    for revision in REVISIONS:
        assert ask("judge", revision, pairs=pairs)["done"] == ours


@genuine
@pytest.mark.parametrize("scene", "ABCD")
def test_the_experts_work_the_lever_there(scene):
    """Of another shape than ours it would not answer to them."""
    with calvin(scene=scene) as world:
        for task, lit in (("turn_on_lightbulb", False), ("turn_off_lightbulb", True)):
            start = next(c.start for c in evaluation_chains() if c.initial["lightbulb"] == lit)
            observation, begun, expert = begin(world, start), world.states()[0], Expert()
            for _ in range(120):
                observation, *_ = world.step(expert.act({**observation, TASK: [task]}, None)[0][:, 0])
                if solved(begun, world.states()[0], [task]):
                    break
            assert solved(begun, world.states()[0], [task])


@genuine
def test_an_evaluation_depends_neither_on_worlds_nor_on_order():
    def results(num_worlds, numbers):
        with calvin(num_worlds) as world:
            found = list(evaluate(world, Expert(), Benchmark(), numbers, RecedingHorizon(1)))
        return sorted(found, key=lambda result: result["chain"])

    together = results(2, [3, 0])
    assert results(1, [0, 3]) == together
    assert together[0]["attempts"][0]["solved"]


@genuine
def test_a_killed_simulator_comes_back_where_it_was(capfd):
    chain, actions = evaluation_chains(1)[0], sweep(40)
    with calvin() as world:
        begin(world, chain.start)
        whole = trajectory(world, actions)
        begin(world, chain.start)
        trajectory(world, actions[:30])
        os.kill(world._processes[0].pid, signal.SIGKILL)
        np.testing.assert_array_equal(trajectory(world, actions[30:]), whole[30:])
        assert "killed by SIGKILL" in world.faults[0]


@genuine
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mends": {"gravity": True}}, r"there is no mend 'gravity', only actions, history, led"),
        ({"cameras": {"side": (50, 50)}}, r"there is no camera 'side', only \['static', 'wrist'\]"),
        ({"versions": {"pybullet": "3.0.0"}}, r"pybullet is 3.2.7 there, 3.0.0 is needed"),
    ],
)
def test_what_the_far_side_refuses(changes, words):
    with pytest.raises(UserError, match=words), calvin(**changes):
        pass


@genuine
def test_a_changed_checkout_is_refused(tmp_path):
    for number, revision in enumerate(REVISIONS):
        clone = ["git", "clone", "--quiet", "--shared", str(CHECKOUTS / revision), str(tmp_path / revision)]
        subprocess.run(clone, check=True)
        checkout = ["git", "-C", str(tmp_path / revision), "checkout", "--quiet", "--detach"]
        subprocess.run([*checkout, revision if number == 0 else f"{revision}~1"], check=True)
    with (tmp_path / "1431a46" / "conf" / "robot" / "panda.yaml").open("a") as file:
        file.write("max_velocity: 4\n")
    with pytest.raises(UserError, match=r"not what was published: 1 files differ, the first conf/robot/panda.yaml"):
        Calvin(root=str(tmp_path), cameras={})
    with pytest.raises(UserError, match=r"is no git checkout of CALVIN's 797142c"):
        Calvin(root=str(tmp_path), revision="797142c", cameras={})


@genuine
def test_shapes_of_starts(world):
    with pytest.raises(UserError, match=r"robot_obs has shape \(1, 14\)"):
        world.reset(options={"robot_obs": np.zeros((1, 14))})
    with pytest.raises(UserError, match=r"unknown reset option 'look'"):
        world.reset(options={"look": np.zeros(1)})


@genuine
def test_play_begins_in_every_scene():
    with calvin(4, scene="ABCD") as world:
        play, rng = Play(), np.random.default_rng(3)
        starts = [play.start(rng, scene, {}) for scene in world.scenes]
        world.reset(options={name: np.stack([start[name] for start in starts]) for name in starts[0]})
        world.step(world.holding())
        chosen = [play.choose(rng, s, scene, {}) for s, scene in zip(world.states(), world.scenes, strict=True)]
        assert all(task is None or play.instructions(task) for task in chosen)
        assert any(chosen)
        assert world.scenes == L.SCENES
