"""F1's flow that is shown the rest of a plan."""

import numpy as np
import pytest
from small_f1 import VIDEO, observation, policy, take

from vla.executor import prefix_weights, shown
from vla.policy import Continuing
from vla.spec import PLAN, PLAN_WEIGHT


def with_plan(observation, lengths, delay):
    rng = np.random.default_rng(0)
    plans = [rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32) for length in lengths]
    return {**observation, **shown([(plan, prefix_weights(len(plan), delay)) for plan in plans], 7)}


@pytest.mark.parametrize("scales", [0, 2])
def test_what_is_frozen_is_kept_exactly_and_the_rest_is_drawn_to_the_plan(scales):
    net, worlds, delay = policy(chunk=6, foresight={"scales": scales}, flow={"steps": 5}), 8, 2
    assert isinstance(net, Continuing)
    assert net.continues
    plain = observation(worlds)
    given = with_plan(plain, [5] * worlds, delay)
    free, before = net.act(plain, net.begin(range(worlds)))
    held, after = net.act(given, net.begin(range(worlds)))
    np.testing.assert_array_equal(held[:, :delay], given[PLAN][:, :delay])
    far, near = (np.abs(chunk[:, delay, :6] - given[PLAN][:, delay, :6]).mean() for chunk in (free, held))
    assert near < 0.7 * far
    np.testing.assert_array_equal(before["plan"], after["plan"])  # what is foreseen is no matter of the plan of actions
    given[PLAN_WEIGHT][:] = 0
    np.testing.assert_allclose(net.act(given, net.begin(range(worlds)))[0], free, atol=1e-6)


def test_continued_actions_do_not_depend_on_neighbours_and_their_plans():
    net, worlds, rng = policy(chunk=6), 11, np.random.default_rng(0)
    given = with_plan(observation(worlds), rng.integers(0, 6, worlds), 2)
    together, _ = net.act(given, net.begin(range(worlds)))
    for _ in range(2):
        chosen = rng.permutation(worlds)[: rng.integers(1, worlds + 1)].tolist()
        np.testing.assert_array_equal(net.act(take(given, chosen), net.begin(chosen))[0], together[chosen])


def test_a_policy_of_video_continues_nothing():
    assert not policy(VIDEO).continues
