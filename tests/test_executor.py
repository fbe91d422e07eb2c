import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.executor import RecedingHorizon, TemporalEnsemble
from vla.spec import UserError


def play(executor, chunk_at, steps, world=0):
    """The actions of `steps` control steps and the steps at which the executor asked."""
    actions, asked = [], []
    for step in range(steps):
        if executor.asks(world):
            asked.append(step)
            executor.give(world, chunk_at(step))
        actions.append(executor.action(world))
    return np.array(actions), asked


def plan(step, horizon=6):
    """A chunk in which entry 0 says when it was made and entry 1 for which step each action is meant."""
    return np.stack([np.full(horizon, step), step + np.arange(horizon)], axis=1).astype(np.float32)


@given(execute=st.integers(1, 9), horizon=st.integers(1, 9), steps=st.integers(1, 30))
def test_receding_horizon_executes_the_first_actions_of_each_chunk_on_time(execute, horizon, steps):
    executor = RecedingHorizon(execute)
    executor.begin(0)
    actions, asked = play(executor, lambda s: plan(s, horizon), steps)
    assert asked == list(range(0, steps, min(execute, horizon)))
    np.testing.assert_array_equal(actions[:, 1], np.arange(steps))
    np.testing.assert_array_equal(actions[:, 0], [max(a for a in asked if a <= s) for s in range(steps)])


@given(decay=st.floats(0, 2), horizon=st.integers(1, 6), every=st.integers(1, 7), steps=st.integers(1, 20))
def test_the_ensemble_is_the_published_weighted_mean(decay, horizon, every, steps):
    executor = TemporalEnsemble(every, decay)
    executor.begin(0)
    actions, asked = play(executor, lambda s: plan(s, horizon), steps)
    assert asked == list(range(0, steps, min(every, horizon)))
    np.testing.assert_allclose(actions[:, 1], np.arange(steps), rtol=1e-5)
    for step in range(steps):
        alive = [a for a in asked if a <= step < a + horizon]  # oldest first
        weights = [np.exp(-decay * rank) for rank in range(len(alive))]
        assert actions[step, 0] == pytest.approx(np.dot(weights, alive) / np.sum(weights), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("make", [lambda: RecedingHorizon(3), lambda: TemporalEnsemble(1, 0.01)])
def test_worlds_do_not_share_plans_and_begin_forgets(make):
    executor = make()
    for world in (0, 1):
        executor.begin(world)
    executor.give(0, plan(0))
    executor.action(0)
    assert executor.asks(1)
    executor.begin(0)
    assert executor.asks(0)
    executor.give(0, plan(100))
    assert executor.action(0)[0] == 100


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="execute is 0"):
        RecedingHorizon(0)
    with pytest.raises(UserError, match="decay is -1"):
        TemporalEnsemble(1, -1.0)
