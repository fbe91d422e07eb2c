import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.executor import RealTime, RecedingHorizon, TemporalEnsemble, prefix_weights, require_continuing, shown
from vla.spec import PLAN, PLAN_WEIGHT, UserError

JOINERS = {"receding": RecedingHorizon, "ensemble": TemporalEnsemble, "realtime": RealTime}


def play(executor, chunk_at, steps, world=0):
    """The actions of `steps` control steps and the steps at which the executor asked."""
    actions, asked = [], []
    for step in range(steps):
        if executor.asks(world):
            asked.append(step)
            executor.give(world, chunk_at(step))
        actions.append(executor.action(world))
    return np.array(actions), asked


def play_late(executor, chunk_at, steps, delay, on_ask=lambda step: None):
    """As `play`, with answers that are `delay` steps late; None where there was no action."""
    actions, asked, coming = [], [], None
    for step in range(steps):
        if coming is not None and step - asked[-1] == delay:
            executor.give(0, coming, delay)
            coming = None
        if coming is None and executor.asks(0):
            asked.append(step)
            on_ask(step)
            coming = chunk_at(step)
            if delay == 0:
                executor.give(0, coming, 0)
                coming = None
        actions.append(executor.action(0))
    return actions, asked


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


LATE = {"execute": st.integers(1, 9), "horizon": st.integers(1, 12), "delay": st.integers(0, 12), "steps": st.integers(1, 40)}


@given(**LATE)
def test_a_late_chunk_is_joined_by_the_step_its_actions_are_meant_for(execute, horizon, delay, steps):
    executor = RecedingHorizon(execute)
    executor.begin(0)
    actions, asked = play_late(executor, lambda s: plan(s, horizon), steps, delay)
    assert asked == list(range(0, steps, max(min(execute, horizon), delay)))
    for step, action in enumerate(actions):
        usable = [a for a in asked if a + delay <= step < a + horizon]
        if not usable:
            assert action is None
        else:
            assert action.tolist() == [max(usable), step]


@given(**LATE)
def test_the_ensemble_averages_what_has_arrived(execute, horizon, delay, steps):
    executor = TemporalEnsemble(execute, 0.0)
    executor.begin(0)
    actions, asked = play_late(executor, lambda s: plan(s, horizon), steps, delay)
    for step, action in enumerate(actions):
        usable = [a for a in asked if a + delay <= step < a + horizon]
        assert (action is None) == (not usable)
        if usable:
            np.testing.assert_allclose(action, [np.mean(usable), step], rtol=1e-5)


@given(name=st.sampled_from(list(JOINERS)), **LATE)
def test_no_delay_is_the_same_as_giving_at_once(name, execute, horizon, delay, steps):
    found = []
    for player in (play, lambda *a: play_late(*a, 0)):
        executor = JOINERS[name](execute)
        executor.begin(0)
        found.append(player(executor, lambda s: plan(s, horizon), steps))
    np.testing.assert_array_equal(found[0][0], np.array(found[1][0]))
    assert found[0][1] == found[1][1]


@given(**LATE)
def test_what_is_shown_as_frozen_is_what_is_executed_until_the_answer(execute, horizon, delay, steps):
    executor, rests = RealTime(execute), {}
    executor.begin(0)

    def chunk(step):
        return np.random.default_rng(step).normal(size=(horizon, 3)).astype(np.float32)

    def ask(step):
        rests[step] = executor.rest(0, delay)

    actions, asked = play_late(executor, chunk, steps, delay, ask)
    for step in asked:
        rest, weights = rests[step]
        assert len(rest) == len(weights) == (max(0, horizon - (step - asked[asked.index(step) - 1])) if step else 0)
        np.testing.assert_array_equal(weights, prefix_weights(len(rest), delay))
        for later, planned in zip(actions[step : step + delay], rest, strict=False):
            np.testing.assert_array_equal(later, planned)


@given(**LATE)
def test_a_policy_that_keeps_to_the_plan_leaves_no_trace_of_the_delay_at_the_seam(execute, horizon, delay, steps):
    """An idealised policy: each chunk begins with the frozen actions and counts on from them."""
    executor = RealTime(execute)
    executor.begin(0)

    def chunk(step):
        rest, weights = executor.rest(0, delay)
        frozen = rest[weights == 1, 0] if len(rest) else np.zeros(0)
        first = frozen[-1] + 1 if len(frozen) else step
        return np.concatenate([frozen, first + np.arange(horizon - len(frozen))])[:, None].astype(np.float32)

    actions, _ = play_late(executor, chunk, steps, delay)
    said = [(step, action[0]) for step, action in enumerate(actions) if action is not None]
    assert all(step == action for step, action in said)


@given(length=st.integers(0, 30), delay=st.integers(0, 30))
def test_weights_are_the_papers(length, delay):
    weights = prefix_weights(length, delay)
    horizon, since = 50, 50 - length  # H and s
    for i in range(length):
        if i < delay:
            assert weights[i] == 1
        else:
            c = (horizon - since - i) / (horizon - since - delay + 1)
            assert weights[i] == pytest.approx(c * (np.exp(c) - 1) / (np.e - 1), rel=1e-5)
            assert 0 < weights[i] < 1
    assert np.all(np.diff(weights) <= 0)


def test_the_plan_is_shown_from_where_the_observation_was_made():
    executor = RealTime(3)
    executor.begin(0)
    executor.give(0, plan(0, 6))
    for _ in range(3):
        executor.action(0)
    assert executor.rest(0, 1)[0][:, 1].tolist() == [3, 4, 5]
    assert executor.rest(0, 3, age=2)[0][:, 1].tolist() == [1, 2, 3, 4, 5]
    assert len(executor.rest(0, 3, age=4)[0]) == 0  # before the plan began


def test_plans_of_several_worlds_are_padded_with_what_weighs_nothing():
    rests = [(np.ones((2, 3), np.float32), prefix_weights(2, 1)), (np.zeros((0, 0), np.float32), prefix_weights(0, 1))]
    found = shown(rests, 3)
    assert found[PLAN].shape == (2, 2, 3)
    np.testing.assert_array_equal(found[PLAN_WEIGHT], [prefix_weights(2, 1), [0, 0]])
    assert not found[PLAN][1].any()
    assert shown(rests[1:], 3)[PLAN].shape == (1, 0, 3)


def test_a_policy_that_cannot_continue_a_plan_is_refused():
    with pytest.raises(UserError, match=r"real-time chunking, 5 actions per query\) wants .* object cannot"):
        require_continuing(RealTime(5), object())
    require_continuing(RecedingHorizon(5), object())


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
    executor = RecedingHorizon(1)
    executor.begin(0)
    with pytest.raises(UserError, match="chunk is empty"):
        executor.give(0, np.zeros((0, 7), np.float32))
