"""Other people's simulators as `make worlds` installs them. Each is skipped, with the reason, where it is not installed."""

import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

import conf
import envs
from envs.elsewhere.expert import Expert
from envs.elsewhere.world import ROOT
from vla.checkpoint import build_policy, save_checkpoint
from vla.evaluation.run import run
from vla.spec import IMAGE_PREFIX, UserError

CONF = Path(conf.__file__).parent / "env"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if "playtable" not in path.read_text())
REQUIREMENTS = Path(envs.__file__).parent / "elsewhere" / "far" / "requirements"


def whole(command, *overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose(command, overrides=list(overrides))


def composed(name):
    return whole("evaluate", f"env={name}").env


@pytest.fixture(params=[name for name in NAMES if not name.startswith("libero_")])  # these differ from libero in tasks alone
def word(request):
    return request.param


@pytest.fixture
def config(word):
    found = composed(word)
    if not (ROOT / found.world.python).exists():
        pytest.skip(f"{found.world.python} is not there: make worlds NAME={found.world.name}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_for_is_what_make_installs(name):
    world = composed(name).world
    lines = (REQUIREMENTS / f"{world.name}.txt").read_text().split()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert pinned == dict(world.versions)
    assert {"numpy", "msgpack"} <= set(lines)
    assert world.python == f".worlds/{world.name}/bin/python"


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark(name):
    config = composed(name)
    benchmark = instantiate(config.benchmark)
    trials = benchmark.chains()
    assert len(trials) == len(benchmark.tasks) * benchmark.trials
    assert {trial.tasks[0] for trial in trials[: len(benchmark.tasks)]} == set(benchmark.tasks)
    for trial in trials[:: len(trials) // 7]:
        assert benchmark.tasks[int(trial.start["task"])] == trial.tasks[0]
        [sentence] = benchmark.instructions(trial.tasks[0])
        assert re.fullmatch(r"[a-zA-Z ]+", sentence)
    with pytest.raises(UserError, match="one wording and no split 'heldout'"):
        benchmark.instructions(benchmark.tasks[0], "heldout")
    with pytest.raises(UserError, match="has no task 'fly'"):
        benchmark.instructions("fly")


def test_play_takes_turns_and_keeps_off_the_trials():
    play = instantiate(composed("metaworld").play)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(play._benchmark.tasks, 3) | {"push-v3": 2}
    starts = [play.start(rng, "metaworld", counts) for _ in range(20)]
    assert {play._benchmark.tasks[int(start["task"])] for start in starts} == {"push-v3"}
    assert min(int(start["start"]) for start in starts) >= 10_000


def test_an_episode_with_pictures(config):
    world = instantiate(config.world, num_worlds=1, _convert_="all")
    try:
        task = len(world.tasks) - 1
        options = {"task": np.array([task]), "start": np.array([1])}
        observation, _ = world.reset(options=options)
        assert world.observation_space.contains(observation)
        assert world.states()[0].task == world.tasks[task]
        pictures = [name for name in observation if name.startswith(IMAGE_PREFIX)]
        assert {name.removeprefix(IMAGE_PREFIX) for name in pictures} == set(config.world.cameras)
        assert all(observation[name].std() > 5 for name in pictures)
        world.action_space.seed(0)
        actions = [world.action_space.sample() for _ in range(4)]
        first = [world.step(action)[0] for action in actions]
        assert world.observation_space.contains(first[-1])
        assert any((first[-1][name] != observation[name]).any() for name in pictures)
        world.reset(options=options)
        again = [world.step(action)[0] for action in actions]
        for name in observation:
            np.testing.assert_array_equal(again[-1][name], first[-1][name], err_msg=name)
        assert world.faults == []
    finally:
        world.close()


@pytest.mark.parametrize("policy", ["gr1_small", "f1_small"])
def test_policies_play_there(word, config, policy, tmp_path):
    """Made for the world's Spec by their configs (and a camera of another name), saved, loaded and evaluated."""
    shorter = ["env.world.num_worlds=1", "env.benchmark.max_steps=12"]
    world = instantiate(config.world, num_worlds=1, _convert_="all")
    spec = world.vla_spec
    world.close()
    others = [f"+policy.cameras.{camera}.pad=1" for camera in spec.cameras if camera not in ("static", "wrist")]
    if others and policy == "f1_small":
        others.append(f"policy.foresight.camera={next(iter(spec.cameras))}")
    made = whole("train", f"policy={policy}", *others).policy
    save_checkpoint(tmp_path / "made", build_policy(made, spec), made, {})
    rules = [f"checkpoint={tmp_path / 'made'}", f"out={tmp_path / 'out'}", "chains=2", "workers=1", "videos=0"]
    result, _ = run(whole("evaluate", f"env={word}", *shorter, *rules))
    attempts = [attempt for chain in result["chains"] for attempt in chain["attempts"]]
    assert [attempt["task"] for attempt in attempts] == [chain.tasks[0] for chain in instantiate(config.benchmark).chains()[:2]]
    assert all(attempt["solved"] or attempt["steps"] == 12 for attempt in attempts)


def test_metaworlds_expert_solves_and_a_world_goes_on_from_what_was_saved():
    config = composed("metaworld")
    if not (ROOT / config.world.python).exists():
        pytest.skip("make worlds NAME=metaworld")
    world = instantiate(config.world, num_worlds=1, cameras={}, _convert_="all")
    expert = Expert()
    try:
        observation, _ = world.reset(options={"task": np.array([world.tasks.index("reach-v3")]), "start": np.array([0])})
        seen = []
        for step in range(60):
            if step == 20:
                saved = world.save()
            seen.append(observation)
            observation, *_ = world.step(expert.act(observation, None)[0][:, 0])
        assert world.states()[0].success
        observation = world.restore(saved)
        for before in seen[20:30]:
            for name in observation:
                np.testing.assert_array_equal(observation[name], before[name], err_msg=name)
            observation, *_ = world.step(expert.act(observation, None)[0][:, 0])
    finally:
        world.close()


def test_a_world_without_an_expert_says_so():
    with pytest.raises(UserError, match="no scripted expert"):
        Expert().act({"observation.state": np.zeros((1, 2))}, None)
