"""Bad input to a playtable is refused in one sentence that names the thing, the value and the mend."""

import numpy as np
import pytest

import envs.playtable as playtable
from vla.spec import UserError


@pytest.fixture(scope="module")
def world():
    return playtable.make("D", cameras={})


def options(**values):
    return lambda world: world.reset(options=values)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (options(robot="home"), "unknown reset option 'robot'.*robot_obs"),
        (options(robot_obs=np.zeros(15)), r"robot_obs has shape \(15,\).*\(1, 15\)"),
        (options(scene_obs=np.zeros((2, 24))), r"scene_obs has shape \(2, 24\).*\(1, 24\)"),
        (options(scene_obs=np.full((1, 24), np.nan)), "scene_obs is not finite"),
        (options(robot_obs=np.full((1, 15), np.inf)), "robot_obs is not finite"),
        (options(reset_mask=np.ones(3, bool)), r"reset_mask has shape \(3,\).*\(1,\)"),
        (options(look=np.array([-1])), "look is .*-1"),
        (options(look=np.array([1, 2])), "look is .*1 whole numbers"),
        (lambda w: w.reset(seed=[1, 2]), "2 seeds.*1 worlds"),
        (lambda w: w.step(np.zeros(7)), r"actions have shape \(7,\).*\(1, 7\)"),
        (lambda w: w.step(np.full((1, 7), np.nan)), "action of world 0 is nan at delta_x"),
        (lambda w: w.step(np.array([[0, 0, 0, 0, 0, np.inf, 1]])), "inf at delta_yaw"),
        (lambda w: w.look(np.ones(2, bool)), r"mask for look has shape \(2,\)"),
        (lambda w: w.observe(True), r"mask for observe has shape \(\)"),
        (lambda w: w.restore(np.zeros((1, 5))), r"shape \(1, 5\)"),
        (lambda w: w.restore(np.full(w.save().shape, np.nan)), "not finite"),
        (lambda w: w.restore(playtable.make("A", cameras={}).save()), "of scenes A and this is D"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(world, call, words):
    world.reset(seed=0)
    before = world.save()
    with pytest.raises(UserError, match=words) as error:
        call(world)
    assert len(str(error.value).splitlines()) == 1
    np.testing.assert_array_equal(world.save(), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scene": "E"}, "unknown scene 'E'.*A, B, C, D"),
        ({"scene": "DX"}, "unknown scene 'X'.*A, B, C, D"),
        ({"scene": ""}, "scene is empty"),
        ({"num_worlds": 0}, "num_worlds is 0"),
        ({"cameras": {"front": (64, 64)}}, "camera 'front' is not in the scene.*static"),
        ({"cameras": {"static": (0, 64)}}, "camera 'static' has size"),
        ({"renderer": "pencil"}, "renderer 'pencil' is unknown.*raster"),
        ({"randomize": 2}, "randomize is 2"),
        ({"leash": (0, 1)}, "leash is"),
        ({"supersample": 0}, "supersample is 0"),
    ],
)
def test_a_world_that_cannot_be_made_says_why(arguments, words):
    with pytest.raises(UserError, match=words):
        playtable.make(**arguments)
