"""Every expert in every scene, from a few seeded starts each; the full count is benchmarks/experts.py's."""

from collections import Counter

import numpy as np
import pytest

import envs.playtable as playtable
from benchmarks.experts import FROM_THE_HAND, play_trial, rate, trials
from envs.playtable import layout as L
from envs.playtable.experts import EXPERTS, Expert
from envs.playtable.language import instructions
from envs.playtable.tasks import TASKS, is_solved
from vla.executor import RecedingHorizon
from vla.rollout import Job, rollout
from vla.spec import TASK, UserError, require_match

STARTS = 2


@pytest.fixture(scope="module")
def found():
    return list(trials(Expert(), starts=STARTS))


def test_experts_solve_their_tasks(found):
    assert Counter((t.scene, t.task) for t in found) == dict.fromkeys([(s, t) for s in "ABCD" for t in TASKS], STARTS)
    assert rate(found) >= 90
    for scene in "ABCD":
        assert rate([t for t in found if t.scene == scene]) >= 85
    for task in TASKS:
        assert rate([t for t in found if t.task == task]) >= 50, task


def test_experts_do_not_dawdle(found):
    assert np.median([t.steps for t in found if t.solved]) < 60


def test_there_is_an_expert_for_each_task_and_no_other():
    assert set(EXPERTS) == set(TASKS)


def test_an_expert_follows_any_sentence_of_its_task():
    world, expert = playtable.make("D", 1, cameras={}), Expert()
    require_match(expert.spec, world.vla_spec, "expert", "world")
    observation, _ = world.reset(seed=1)
    for task in TASKS:
        actions = []
        for sentence in (task, *instructions(task, "train")[:2], *instructions(task, "heldout")[:1]):
            observation[TASK] = [sentence]
            actions.append(expert.act(observation, None)[0])
        assert actions[0].shape == (1, 1, 7)
        assert (np.abs(actions[0]) <= 1).all()
        for other in actions[1:]:
            np.testing.assert_array_equal(other, actions[0])
    observation[TASK] = ["sing a song"]
    with pytest.raises(UserError, match="sing a song"):
        expert.act(observation, None)


def test_experts_are_functions_of_the_instant(found):
    """Asked twice, or after other tasks, they answer the same."""
    world, expert = playtable.make("A", 1, cameras={}), Expert()
    start = next(t for t in found if t.scene == "A" and t.task not in FROM_THE_HAND)
    observation, _ = world.reset(options={"robot_obs": start.robot_obs[None], "scene_obs": start.scene_obs[None]})
    first = {task: expert.act(observation | {TASK: [task]}, None)[0] for task in TASKS}
    for task in reversed(TASKS):
        np.testing.assert_array_equal(expert.act(observation | {TASK: [task]}, None)[0], first[task])


def test_a_trial_depends_on_its_arguments_alone(found):
    task, number = "lift_red_block_table", 1
    world = playtable.make("B", 1, cameras={})
    jobs = iter([Job(0, play_trial("B", task, number))])
    ((_, alone),) = rollout(world, Expert(), lambda _: next(jobs, None), RecedingHorizon(1))
    in_company = next(t for t in found if (t.scene, t.task, t.number) == ("B", task, number))
    assert (alone.solved, alone.steps) == (in_company.solved, in_company.steps)
    np.testing.assert_array_equal(alone.scene_obs, in_company.scene_obs)


def tried(tasks, blocks, slider=0.0, drawer=0.0):
    """Whether the expert does these tasks one after the other in scene D; blocks: colour -> x, y, z, yaw."""
    scene = np.zeros(24)
    scene[:2] = slider, drawer
    for colour, (x, y, z, yaw) in blocks.items():
        place = 6 + 6 * L.LAYOUTS["D"].block_order.index(colour)
        scene[place : place + 6] = x, y, z, 0, 0, yaw
    world, expert = playtable.make("D", 1, cameras={}), Expert()
    observation, _ = world.reset(options={"robot_obs": L.HOME_ROBOT_OBS[None], "scene_obs": scene[None]})
    done: list[bool] = []
    for task in tasks:
        (start,) = (state,) = world.states()
        steps = 0
        while steps < 120 and not is_solved(task, start, state):
            observation = world.step(expert.act(observation | {TASK: [task]}, None)[0][:, 0])[0]
            (state,) = world.states()
            steps += 1
        done.append(is_solved(task, start, state))
    return done


FAR = {"red": (-0.24, 0.09, 0.461, 1.5), "blue": (0.07, 0.09, 0.461, 1.5)}


def test_a_block_without_room_for_the_fingers_is_moved_aside_first():
    crowded = {
        "beside another block": FAR | {"pink": (0.157, -0.112, 0.46, 1.49), "red": (0.23, -0.12, 0.46, 1.45)},
        "beside the button": FAR | {"pink": (-0.053, -0.126, 0.46, 1.64)},
        "touching another block": FAR | {"pink": (0.05, -0.12, 0.46, 1.57), "red": (0.092, -0.12, 0.46, 1.57)},
    }
    for place, blocks in crowded.items():
        assert tried(["lift_pink_block_table"], blocks) == [True], place
    in_the_drawer = FAR | {"pink": (0.035, -0.26, 0.3624, 1.57)}
    assert tried(["lift_pink_block_drawer"], in_the_drawer, slider=0.28, drawer=0.22) == [True]


def test_two_blocks_share_the_narrow_half_of_the_cabinet():
    tasks = ["lift_pink_block_table", "place_in_slider", "lift_red_block_slider"]
    assert tried(tasks, FAR | {"pink": (0.05, -0.12, 0.46, 1.3)}) == [True] * 3


def test_a_stack_stands_when_the_hand_has_left():
    for then in ("close_drawer", "move_slider_left"):
        tasks = ["lift_pink_block_table", "stack_block", then, "unstack_block"]
        done = tried(tasks, FAR | {"pink": (0.23, -0.12, 0.46, 1.6), "blue": (0.05, -0.12, 0.46, 1.3)}, drawer=0.22)
        assert done == [True] * 4, then
