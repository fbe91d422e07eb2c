"""The playtable as LeRobot's environment: the chains' starts and tasks, success as we judge it, whatever runs beside."""

import numpy as np
import pytest
from lerobot.envs.factory import make_env
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, env_to_policy_features, preprocess_observation
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot_folders import dataset
from lerobot_policy_vla.env import Episode, PlaytableConfig
from tiny_plugin import made

import envs.playtable as playtable
from envs.playtable.benchmark import Benchmark
from envs.playtable.tasks import TASKS
from vla.evaluation.long_horizon import evaluate
from vla.executor import RecedingHorizon
from vla.spec import ACTION, STATE, UserError

SIZES = {"static": (24, 24), "wrist": (16, 16)}


def episode(task=None, length=5, split="validation"):
    return Episode(**PlaytableConfig(task=task, episode_length=length, split=split, sizes=SIZES).gym_kwargs)


def test_an_episode_is_the_first_task_of_a_chain():
    world, benchmark = episode(), Benchmark()
    for number in (0, 7, 1007):
        observation, info = world.reset(seed=number)
        chain = benchmark.chains()[number % 1000]
        assert (world.task, world.task_description) == (chain.tasks[0], benchmark.instruction(chain.tasks[0]))
        np.testing.assert_allclose(observation["agent_pos"][:3], chain.robot_obs[:3], atol=5e-3)
        assert not info["is_success"]
        assert world.observation_space.contains(observation)
    world.close()


def test_time_is_over_after_episode_length_and_seeds_decide_all():
    ends = []
    for _ in range(2):
        world = episode("open_drawer")
        world.reset(seed=3)
        assert world.task == "open_drawer"
        steps = [world.step(np.full(7, 0.3, np.float32)) for _ in range(5)]
        assert [s[2] or s[3] for s in steps] == [False] * 4 + [True]
        assert steps[-1][4] == {"is_success": False}
        ends.append(steps[-1][0])
        assert world.render().shape == (24, 24, 3)
        world.close()
    np.testing.assert_array_equal(ends[0]["agent_pos"], ends[1]["agent_pos"])
    np.testing.assert_array_equal(ends[0]["pixels"]["static"], ends[1]["pixels"]["static"])


class Easy(Benchmark):
    """Whatever is wanted is done at once."""

    def solved(self, task, start, end):
        return task == "turn_on_led"


def test_a_solved_task_ends_the_episode():
    world = episode("turn_on_led", length=50)
    world._benchmark = Easy()
    world.reset(seed=0)
    _, reward, terminated, truncated, info = world.step(np.zeros(7, np.float32))
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"is_success": True})
    world.close()


def test_lerobot_makes_worlds_that_freeze_when_done():
    config = PlaytableConfig(episode_length=2, sizes=SIZES)
    features = env_to_policy_features(config)
    assert {k: f.shape for k, f in features.items()} == {
        ACTION: (7,), STATE: (15,), "observation.images.static": (3, 24, 24), "observation.images.wrist": (3, 16, 16),
    }  # fmt: skip
    worlds = make_env(config, n_envs=2)["playtable"][0]
    observation, _ = worlds.reset(seed=[4, 5], options={NEW_ROLLOUT_OPTION: True})
    batch = preprocess_observation(observation)
    assert set(batch) == set(features) - {ACTION}
    assert list(worlds.call("task")) == [Benchmark().chains()[i].tasks[0] for i in (4, 5)]
    assert worlds.call("_max_episode_steps") == (2, 2)
    for _ in range(2):
        observation, _, _, truncated, _ = worlds.step(np.zeros((2, 7), np.float32))
    assert truncated.all()
    after, *_ = worlds.step(np.ones((2, 7), np.float32))
    np.testing.assert_array_equal(after["agent_pos"], observation["agent_pos"])
    worlds.close()


class Short(Benchmark):
    max_steps = 12


class Noted:
    """A recorder of actions."""

    imagines = False

    def __init__(self):
        self.actions = []

    def step(self, observation, action, imagined):
        self.actions.append(action)


def test_lerobot_s_loop_and_ours_do_the_same(tmp_path):
    """The same policy from the same chains: every action of lerobot-eval's loop is, bit for bit, that of vla-evaluate's."""
    policy, meta = made(dataset(tmp_path / "data"), changes={"gripper_rule": "threshold"})
    config = PlaytableConfig(episode_length=Short.max_steps, sizes=SIZES)
    worlds = make_env(config, n_envs=2)["playtable"][0]
    processors = make_pre_post_processors(policy.config, dataset_stats=meta.stats)
    theirs = rollout(worlds, policy, *config.get_env_processors(), *processors, seeds=[1, 4])["action"].numpy()
    worlds.close()
    notes = {1: Noted(), 4: Noted()}
    executor = RecedingHorizon(policy.config.n_action_steps)
    ours = playtable.make("D", 2, SIZES)
    results = list(evaluate(ours, policy.policy, Short(), notes, executor, record=lambda number, *_: notes[number]))
    ours.close()
    assert [r["attempts"][0]["steps"] for r in results] == [Short.max_steps] * 2
    np.testing.assert_array_equal(theirs, np.stack([noted.actions for noted in notes.values()]))


def test_mistakes_are_told():
    with pytest.raises(UserError, match="'fly'"):
        PlaytableConfig(task="fly")
    assert PlaytableConfig(task=TASKS[0]).task == TASKS[0]
