"""Gymnasium's environments in other processes."""

import gymnasium
import numpy as np
import pytest
from toy_worlds import worlds

from vla.spec import UserError

PENDULUM = {"id": "Pendulum-v1", "control_hz": 20, "arguments": {"max_episode_steps": 5}}


def test_a_gymnasium_environment_is_the_same_elsewhere():
    here = gymnasium.make("Pendulum-v1")
    with worlds(1, adapter="gym", cameras={}, options=PENDULUM, tasks=["swing"]) as there:
        seen, _ = there.reset(options={"start": np.array([4])})
        np.testing.assert_array_equal(seen["observation.state"][0], here.reset(seed=4)[0])
        for action in np.linspace(-2, 2, 5):
            seen, rewards, _, truncated, _ = there.step(np.array([[action]]))
            expected, reward, *_ = here.step(np.array([action], np.float32))
            np.testing.assert_array_equal(seen["observation.state"][0], expected)
            assert rewards[0] == reward
        assert truncated[0]
        with pytest.raises(UserError, match="cannot save its worlds"):
            there.save()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": {"static": (4, 4)}}, "there is no camera 'static'"),
        ({"options": {**PENDULUM, "id": "Nothing-v0"}}, "Nothing"),
        ({"options": {"id": "CartPole-v1", "control_hz": 1}}, "refuses open"),
        ({"options": {**PENDULUM, "plugins": ["no_such_module"]}}, "No module named 'no_such_module'"),
    ],
)
def test_gymnasium_environments_that_do_not_fit(changes, words):
    settings = {"adapter": "gym", "cameras": {}, "options": PENDULUM, "tasks": ["swing"], **changes}
    with pytest.raises(UserError, match=words), worlds(1, **settings):
        pass
