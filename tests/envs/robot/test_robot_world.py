"""The mapping from a LeRobot robot to a world: units there and back, what a mistake in it says."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from envs.robot import RobotWorld
from vla.spec import STATE, UserError

DEGREE = np.pi / 180


def mapping(tmp_path, **changes):
    joint = {"unit": "rad", "scale": DEGREE}
    pair = [{"feature": f"{n}.pos", "name": n, **joint} for n in ("shoulder", "elbow")]
    return {
        "robot": {"type": "toy", "calibration_dir": str(tmp_path)},
        "plugins": ["toy_robot"],
        "cameras": {"static": "front"},
        "state": pair,
        "action": [{**row, "low": -2.0, "high": 2.0, "hold": row["name"]} for row in pair],
        "action_kind": "joints",
        "control_hz": 30,
        **changes,
    }


def test_units_there_and_back(tmp_path):
    world = RobotWorld(**mapping(tmp_path))
    observation, _ = world.reset()
    assert world.observation_space.contains(observation)
    np.testing.assert_allclose(observation[STATE], [[np.pi / 2, 0]], rtol=1e-6)
    observation, *_, infos = world.step(np.array([[2.0, -1.0]]))
    np.testing.assert_allclose(list(world.robot.sent[-1].values()), [2 / DEGREE, -1 / DEGREE])
    np.testing.assert_allclose(infos["sent"], [[100 * DEGREE, -1.0]], rtol=1e-6)  # what the robot says it was sent
    np.testing.assert_allclose(observation[STATE], infos["sent"], rtol=1e-6)
    assert world.vla_spec.cameras == {"static": (4, 6)}


def test_a_robot_that_cannot_hold_is_sent_where_it_is(tmp_path):
    world = RobotWorld(**mapping(tmp_path))
    world.reset()
    np.testing.assert_allclose(world.hold(), [[np.pi / 2, 0]], rtol=1e-6)
    assert list(world.robot.sent[-1].values()) == pytest.approx([90, 0])


def test_a_picture_is_as_old_as_its_camera_says(tmp_path):
    world = RobotWorld(**mapping(tmp_path))
    taken = time.perf_counter() - 5.0
    world.robot.cameras = {"front": SimpleNamespace(latest_timestamp=taken)}  # as LeRobot's cameras have it
    world.reset()
    _, infos = world.sense()
    assert infos["camera_times_ns"]["static"] == pytest.approx(taken * 1e9, abs=1e3)
    assert infos["time_ns"] - infos["camera_times_ns"]["static"] > 4.9e9


def test_one_false_reading_is_not_held_at(tmp_path):
    world = RobotWorld(**mapping(tmp_path))
    world.reset()
    world.robot.joints["elbow.pos"] = -180.0
    world.sense()
    np.testing.assert_allclose(world.hold(), [[np.pi / 2, 0]], rtol=1e-6)


def test_closing_holds_and_disconnects(tmp_path):
    world = RobotWorld(**mapping(tmp_path))
    world.close()
    assert world.robot.sent == []  # never connected, never moved
    world = RobotWorld(**mapping(tmp_path))
    world.reset()
    world.close()
    assert len(world.robot.sent) == 1
    assert not world.robot.connected


def action(**changes):
    row = {"feature": "shoulder.pos", "name": "shoulder", "unit": "rad", "low": -1, "high": 1, "hold": "shoulder"} | changes
    return {"action": [row, {**row, "feature": "elbow.pos", "name": "elbow"}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"robot": {"type": "of_nobody"}}, "'of_nobody' is unknown"),
        ({"robot": {"type": "toy", "sart": 3}}, "sart"),
        ({"plugins": ["toy_robbot"]}, "toy_robbot"),
        ({"cameras": {"static": "back"}}, "camera feature 'back'"),
        ({"cameras": {"static": "elbow.pos"}}, "camera feature 'elbow.pos'"),
        ({"state": [{"feature": "wrist.pos", "name": "wrist", "unit": "rad"}]}, "state feature 'wrist.pos'"),
        ({"state": [{"name": "wrist", "unit": "rad"}]}, "'feature'"),
        ({"action": []}, "takes 'elbow.pos'"),
        (action(low=None), "'shoulder' lacks low, high or hold"),
        (action(hold="nowhere"), "holds at 'nowhere'"),
    ],
)
def test_a_mistake_in_the_mapping_is_one_sentence(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        RobotWorld(**mapping(tmp_path, **changes))
