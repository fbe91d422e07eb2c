from dataclasses import replace

import numpy as np
import pytest
import torch
from pointworld import PointPolicy, PointWorld, point_spec

from vla.executor import RecedingHorizon, TemporalEnsemble
from vla.rollout import Follow, Job, Reset, Timing, merge, rollout, select
from vla.spec import STATE, TASK, UserError, image_key


class Tape:
    """A recorder that keeps all."""

    imagines = True

    def __init__(self):
        self.observations, self.actions, self.imagined = [], [], []

    def __len__(self):
        return len(self.actions)  # false while empty, and a recorder all the same

    def step(self, observation, action, imagined):
        self.observations.append(observation)
        self.actions.append(action)
        self.imagined.append(imagined)


def wander(key, follows=2, disturb=None):
    """Start at a place of its own and follow a few instructions for a number of steps that depends on the key alone."""
    place = np.random.default_rng(key).uniform(0.2, 0.8, 2)
    state = yield Reset({"robot_obs": place})
    path = [state]
    for part in range(follows):
        follow = Follow(f"go to {('red', 'blue')[(key + part) % 2]}", seed=10 * key + part, disturb=disturb)
        for _ in range(3 + (key * 5 + part) % 7):
            path.append((yield follow))
    return path


def queue(jobs):
    left = iter(jobs)
    return lambda world: next(left, None)


def play(worlds, keys=range(9), policy=None, executor=None):
    jobs = queue(Job(k, wander(k), Tape()) for k in keys)
    world, policy = PointWorld(worlds), policy or PointPolicy()
    done = list(rollout(world, policy, jobs, executor or RecedingHorizon(3)))
    return {job.key: (result, job.recorder) for job, result in done}, world


@pytest.mark.parametrize("executor", [lambda: RecedingHorizon(3), lambda: TemporalEnsemble(1, 0.1)])
@pytest.mark.parametrize("history", [False, True])
def test_a_job_does_the_same_whatever_runs_beside_it(executor, history):
    alone, _ = play(1, policy=PointPolicy(history=history), executor=executor())
    for worlds, keys in [(3, range(9)), (8, reversed(range(9))), (20, range(9))]:
        together, _ = play(worlds, keys, PointPolicy(history=history), executor())
        assert together.keys() == alone.keys()
        for key, (path, tape) in alone.items():
            other_path, other = together[key]
            assert path == other_path
            np.testing.assert_array_equal(tape.actions, other.actions)
            assert [o[TASK] for o in tape.observations] == [o[TASK] for o in other.observations]
            np.testing.assert_array_equal(
                [o[image_key("static")] for o in tape.observations], [o[image_key("static")] for o in other.observations]
            )


def test_recorded_frames_are_of_the_moment_and_in_step_with_the_actions():
    done, _ = play(4)
    for path, tape in done.values():
        assert len(tape.actions) == len(path) - 1
        for here, after, observation, action in zip(path[:-1], path[1:], tape.observations, tape.actions, strict=True):
            np.testing.assert_allclose(observation[STATE], here, atol=1e-6)
            np.testing.assert_allclose(np.clip(np.array(here) + 0.1 * action[:2], 0, 1), after, atol=1e-6)
            row, column = np.argwhere(observation[image_key("wrist")][:, :, 0])[0]
            np.testing.assert_allclose(np.array([row, column]) / 15, here, atol=0.04)


def test_imagined_frames_come_exactly_where_the_policy_was_asked():
    done, _ = play(4, executor=RecedingHorizon(3))
    for _, tape in done.values():
        starts = [s for s, o in enumerate(tape.observations) if s == 0 or o[TASK] != tape.observations[s - 1][TASK]]
        since = [s - max(a for a in starts if a <= s) for s in range(len(tape.actions))]
        assert [frame is not None for frame in tape.imagined] == [k % 3 == 0 for k in since]
        assert all(frame["static"].shape == (16, 16, 3) for frame in tape.imagined if frame is not None)


def test_pictures_are_taken_only_where_someone_looks():
    def jobs():
        return queue(Job(k, wander(k)) for k in range(6))

    world, policy, timing = PointWorld(2), PointPolicy(horizon=4), Timing()
    list(rollout(world, policy, jobs(), RecedingHorizon(4), timing=timing))
    assert world.drawn.sum() == timing.queries == sum(policy.batches)
    assert timing.queries < timing.steps / 2
    blind = PointPolicy()
    blind.spec = point_spec(cameras=False)
    blind.act = lambda observation, memory: (np.zeros((len(observation[TASK]), 1, 7), np.float32), memory)
    world = PointWorld(2)
    list(rollout(world, blind, jobs(), RecedingHorizon(1)))
    assert world.drawn.sum() == 0


def test_a_policy_with_history_sees_every_step_and_starts_afresh():
    seen = []

    class Counting(PointPolicy):
        def act(self, observation, memory):
            seen.extend(memory["seen"])
            return super().act(observation, memory)

    play(1, keys=[3], policy=Counting(history=True), executor=RecedingHorizon(3))
    lengths = [3 + (15 + part) % 7 for part in range(2)]
    assert seen == [k for length in lengths for k in range(0, length, 3)]


def test_partial_resets_leave_the_others_alone():
    _, world = play(3)
    assert all(mask.any() for mask in world.resets)
    assert sum(mask.sum() for mask in world.resets[1:]) == 9


def test_what_is_recorded_is_the_clean_action():
    offset = np.array([0.5, *[0] * 6], np.float32)
    tape = Tape()
    job = Job(0, wander(0, disturb=lambda action: action + offset), tape)
    world = PointWorld()
    (_, path), *_ = list(rollout(world, PointPolicy(noise=0), queue([job]), RecedingHorizon(1)))
    moved = np.diff(np.array(path), axis=0)[:, 0] / 0.1
    np.testing.assert_allclose(moved[:2], np.array(tape.actions)[:2, 0] + 0.5, atol=1e-5)


def test_a_mismatched_world_is_refused_before_it_moves():
    world = PointWorld()
    world.vla_spec = replace(world.vla_spec, control_hz=15.0)
    with pytest.raises(UserError, match=r"control_hz is 30\.0 in the policy but 15\.0 in the world"):
        next(rollout(world, PointPolicy(), queue([]), RecedingHorizon()))
    assert world.resets == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_named(bad):
    policy = PointPolicy()
    fine = policy.act

    def act(observation, memory):
        chunk, memory = fine(observation, memory)
        chunk[:, 1, 1] = bad
        return chunk, memory

    policy.act = act
    with pytest.raises(UserError, match=r"world 0 at step 1 of job 4 is (nan|inf) in entry 1 \(dy\)"):
        list(rollout(PointWorld(), policy, queue([Job(4, wander(4))]), RecedingHorizon(3)))


def test_merge_and_select_are_inverse():
    memory = {"a": np.arange(6).reshape(3, 2), "deep": {"b": torch.arange(3)}, "nothing": None}
    apart = [select(memory, [i]) for i in range(3)]
    again = merge(apart)
    np.testing.assert_array_equal(again["a"], memory["a"])
    assert torch.equal(again["deep"]["b"], memory["deep"]["b"])
    assert again["nothing"] is None
    np.testing.assert_array_equal(select(memory, [2, 0])["a"], memory["a"][[2, 0]])
