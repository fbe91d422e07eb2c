from dataclasses import replace

import numpy as np
import pytest
import torch
from pointworld import ContinuingPolicy, HoldingWorld, PointPolicy, PointWorld, point_spec

from vla.executor import RealTime, RecedingHorizon, TemporalEnsemble
from vla.rollout import Follow, Job, Reset, Timing, delay_steps, merge, rollout, select
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


def play(worlds, keys=range(9), policy=None, executor=None, delay_s=0.0):
    jobs = queue(Job(k, wander(k), Tape()) for k in keys)
    world, policy = HoldingWorld(worlds), policy or PointPolicy()
    done = list(rollout(world, policy, jobs, executor or RecedingHorizon(3), delay_s=delay_s))
    return {job.key: (result, job.recorder) for job, result in done}, world


@pytest.mark.parametrize("executor", [lambda: RecedingHorizon(3), lambda: TemporalEnsemble(1, 0.1), lambda: RealTime(2)])
@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1])
def test_a_job_does_the_same_whatever_runs_beside_it(executor, history, delay_s):
    alone, _ = play(1, policy=ContinuingPolicy(6, history=history), executor=executor(), delay_s=delay_s)
    for worlds, keys in [(3, range(9)), (8, reversed(range(9))), (20, range(9))]:
        together, _ = play(worlds, keys, ContinuingPolicy(6, history=history), executor(), delay_s)
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


@pytest.mark.parametrize(("delay_s", "steps"), [(0.0, 0), (0.03, 1), (0.05, 2), (0.1, 3), (0.2, 6), (0.3, 9)])
def test_a_delay_is_rounded_up_to_control_steps(delay_s, steps):
    assert delay_steps(delay_s, 30.0) == steps
    assert delay_steps(steps / 30.0, 30.0) == steps


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_an_answer_that_comes_late_is_executed_from_where_it_is_due(delay):
    """Every action executed is the one that the chunk of the newest answered question has for that very step."""
    chunks = []

    class Told(PointPolicy):
        def act(self, observation, memory):
            chunk, memory = super().act(observation, memory)
            chunks.append(chunk[0])
            return chunk, memory

    def long():
        yield Reset({"robot_obs": np.array([0.5, 0.5])})
        follow = Follow("go to red", seed=1)
        for _ in range(20):
            yield follow

    tape, timing = Tape(), Timing()
    list(rollout(HoldingWorld(), Told(6, wrong=0), queue([Job(0, long(), tape)]), RecedingHorizon(3), timing, delay / 30.0))
    every = max(3, delay)
    assert timing.queries == len(range(0, 20, every))
    for step, action in enumerate(tape.actions):
        usable = [k for k in range(0, 20, every) if k + delay <= step < k + 6]
        expected = chunks[max(usable) // every][step - max(usable)] if usable else HoldingWorld().holding()[0]
        np.testing.assert_array_equal(action, expected)
    assert timing.held == sum(action[6] == -1 for action in tape.actions) >= delay


def test_a_new_instruction_waits_for_the_old_answer_and_does_not_follow_it():
    asked = []

    class Told(PointPolicy):
        def act(self, observation, memory):
            asked.append((len(tape), observation[TASK][0]))
            return super().act(observation, memory)

    def change():
        yield Reset({"robot_obs": np.array([0.5, 0.5])})
        for sentence, steps in (("go to red", 2), ("go to blue", 10)):
            follow = Follow(sentence, seed=1)
            for _ in range(steps):
                yield follow

    tape = Tape()
    list(rollout(HoldingWorld(), Told(8), queue([Job(0, change(), tape)]), RecedingHorizon(8), delay_s=4 / 30.0))
    assert asked == [(0, "go to red"), (4, "go to blue")]
    assert [action[6] == -1 for action in tape.actions] == [True] * 8 + [False] * 4


def test_a_delay_and_an_executor_must_fit_world_and_policy():
    with pytest.raises(UserError, match=r"PointWorld.* cannot hold"):
        next(rollout(PointWorld(), PointPolicy(), queue([]), RecedingHorizon(), delay_s=0.1))
    with pytest.raises(UserError, match="PointPolicy cannot"):
        next(rollout(HoldingWorld(), PointPolicy(), queue([]), RealTime()))
    with pytest.raises(UserError, match="delay is -1"):
        next(rollout(HoldingWorld(), PointPolicy(), queue([]), RecedingHorizon(), delay_s=-1.0))


def test_merge_and_select_are_inverse():
    memory = {"a": np.arange(6).reshape(3, 2), "deep": {"b": torch.arange(3)}, "nothing": None}
    apart = [select(memory, [i]) for i in range(3)]
    again = merge(apart)
    np.testing.assert_array_equal(again["a"], memory["a"])
    assert torch.equal(again["deep"]["b"], memory["deep"]["b"])
    assert again["nothing"] is None
    np.testing.assert_array_equal(select(memory, [2, 0])["a"], memory["a"][[2, 0]])
