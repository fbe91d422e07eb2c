"""A flow head that is shown the rest of a plan."""

import numpy as np
import pytest
from small_gr1 import FLOW, observation, policy, take

from vla.executor import prefix_weights, shown
from vla.policy import Continuing
from vla.spec import PLAN, PLAN_WEIGHT

HEAD = {**FLOW, "steps": 5}


def with_plan(observation, lengths, delay, seed=0):
    """The observation with the rest of a plan of so many actions for each world, grippers 1 or -1."""
    rng = np.random.default_rng(seed)
    plans = [rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32) for length in lengths]
    for plan in plans:
        plan[:, 6] = np.where(plan[:, 6] > 0, 1, -1)
    return {**observation, **shown([(plan, prefix_weights(len(plan), delay)) for plan in plans], 7)}


def test_only_a_flow_head_continues():
    assert isinstance(policy(head=HEAD), Continuing)
    assert policy(head=HEAD).continues
    net = policy()
    assert not net.continues
    plain = observation(3)
    given = with_plan(plain, [3, 2, 1], 1)
    np.testing.assert_array_equal(net.act(plain, net.begin(range(3)))[0], net.act(given, net.begin(range(3)))[0])


@pytest.mark.parametrize("delay", [0, 1, 2, 4])
def test_what_is_frozen_is_kept_exactly_and_the_rest_is_drawn_to_the_plan(delay):
    net, worlds = policy(head=HEAD, chunk=6), 12
    plain = observation(worlds)
    given = with_plan(plain, [4] * worlds, delay)
    free, _ = net.act(plain, net.begin(range(worlds)))
    held, memory = net.act(given, net.begin(range(worlds)))
    np.testing.assert_array_equal(held[:, :delay], given[PLAN][:, :delay])
    assert memory["count"].tolist() == [1] * worlds
    if delay < 4:
        far, near = (np.abs(chunk[:, delay, :6] - given[PLAN][:, delay, :6]).mean() for chunk in (free, held))
        assert near < 0.7 * far
    assert np.abs(held).max() <= 1
    assert set(np.unique(held[:, :, 6])) <= {-1, 1}


def test_a_plan_that_weighs_nothing_changes_nothing():
    net = policy(head=HEAD)
    plain = observation(5)
    free, _ = net.act(plain, net.begin(range(5)))
    for lengths in ([0] * 5, [3] * 5):
        given = with_plan(plain, lengths, 0)
        given[PLAN_WEIGHT][:] = 0
        np.testing.assert_array_equal(net.act(given, net.begin(range(5)))[0], free)


def test_continued_actions_do_not_depend_on_neighbours_and_their_plans():
    net, worlds, rng = policy(head=HEAD, chunk=6), 19, np.random.default_rng(0)
    given = with_plan(observation(worlds), rng.integers(0, 6, worlds), 2)
    together, _ = net.act(given, net.begin(range(worlds)))
    for _ in range(4):
        chosen = rng.permutation(worlds)[: rng.integers(1, worlds + 1)].tolist()
        some, _ = net.act(take(given, chosen), net.begin(chosen))
        np.testing.assert_array_equal(some, together[chosen])
        longest = max(int((given[PLAN_WEIGHT][i] > 0).sum()) for i in chosen)
        short = take(given, chosen)
        short |= {name: short[name][:, :longest] for name in (PLAN, PLAN_WEIGHT)}
        np.testing.assert_array_equal(net.act(short, net.begin(chosen))[0], some)
