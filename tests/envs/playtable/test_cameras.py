"""The playtable's cameras are CALVIN's: poses, focal lengths, and where things show in the picture."""

import mujoco
import numpy as np
import pytest

import envs.playtable as playtable
from envs.playtable import layout as L
from envs.playtable import scene as S
from envs.playtable.chains import evaluation_chains

VIEW = np.array(
    [
        [0.723245, 0.514123, -0.461080, 0.215266],
        [-0.030261, 0.690611, 0.722594, -0.263172],
        [0.689929, -0.508659, 0.515038, -4.399169],
    ]
)
"""The static camera's view matrix in CALVIN (OpenGL: x right, y up, z backwards)."""
FOCAL = 1143.005
"""Pixels, of 200."""


def project(points):
    """Columns and rows of world points (K, 3) in CALVIN's static picture."""
    right, up, back = VIEW[:, :3] @ points.T + VIEW[:, 3:]
    return np.stack([100 + FOCAL * right / -back, 100 - FOCAL * up / -back], axis=1)


def test_the_static_camera_is_calvins():
    model = S.build("D")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = data.camera("static")
    points = np.array([[x, y, z] for x in (-0.44, 0, 0.44) for y in (-0.3, 0.18) for z in (0, 0.44, 0.66)])
    right, up, back = camera.xmat.reshape(3, 3).T @ (points - camera.xpos).T
    focal = 100 / np.tan(np.deg2rad(model.camera("static").fovy[0]) / 2)
    ours = np.stack([100 + focal * right / -back, 100 - focal * up / -back], axis=1)
    np.testing.assert_allclose(ours, project(points), atol=0.5)
    np.testing.assert_allclose(focal, FOCAL, atol=0.01)


def test_a_block_is_drawn_where_calvins_camera_sees_it():
    chain = evaluation_chains(1)[0]
    start = {"robot_obs": chain.robot_obs[None], "scene_obs": chain.scene_obs[None].copy()}
    start["scene_obs"][0, 6:12] = [0.05, -0.12, 0.46, 0, 0, 0]
    observation, info = playtable.make().reset(options=start)
    image = observation["observation.images.static"][0].astype(int)
    red, green, blue = np.moveaxis(image, -1, 0)
    rows, columns = np.nonzero((red > 2 * green) & (red > 2 * blue))
    half = np.array(L.layout_of("D").block_size("red")) / 2
    corners = info["scene_obs"][0, 6:9] + half * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    seen = project(corners)
    np.testing.assert_allclose([columns.min(), columns.max() + 1], [seen[:, 0].min(), seen[:, 0].max()], atol=1.0)
    np.testing.assert_allclose([rows.min(), rows.max() + 1], [seen[:, 1].min(), seen[:, 1].max()], atol=1.0)


@pytest.mark.parametrize("size", [(64, 64), (60, 100)])
def test_the_projection_says_where_a_point_shows(size):
    model = S.build("D")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = data.camera("static")
    matrix = np.reshape(S.static_projection(size), (3, 4))
    for point in np.random.default_rng(0).uniform([-0.3, -0.3, 0.3], [0.3, 0.1, 0.7], (20, 3)):
        right, up, back = camera.xmat.reshape(3, 3).T @ (point - camera.xpos)
        focal = size[0] / 2 / np.tan(np.deg2rad(model.camera("static").fovy[0]) / 2)
        u, v, w = matrix @ [*point, 1]
        np.testing.assert_allclose(u / w * size[1], size[1] / 2 + focal * right / -back, atol=1e-3)
        np.testing.assert_allclose(v / w * size[0], size[0] / 2 - focal * up / -back, atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (60, 100)])
def test_the_wrists_projection_is_in_the_hands_frame(size):
    model = S.build("D")
    data = mujoco.MjData(model)
    data.qpos[4:11] = np.array(L.HOME_JOINTS) + 0.2
    mujoco.mj_forward(model, data)
    camera, axes, tip = data.camera("wrist"), data.site("tcp").xmat.reshape(3, 3), data.site("tcp").xpos
    matrix = np.reshape(S.wrist_projection(size), (3, 4))
    for ahead in np.random.default_rng(0).uniform(-0.1, 0.1, (20, 3)):
        right, up, back = camera.xmat.reshape(3, 3).T @ (tip + axes @ ahead - camera.xpos)
        focal = size[0] / 2 / np.tan(np.deg2rad(model.camera("wrist").fovy[0]) / 2)
        u, v, w = matrix @ [*ahead, 1]
        np.testing.assert_allclose(u / w * size[1], size[1] / 2 + focal * right / -back, atol=1e-3)
        np.testing.assert_allclose(v / w * size[0], size[0] / 2 - focal * up / -back, atol=1e-3)


def test_the_wrist_camera_rides_on_the_hand():
    model = S.build("D")
    data = mujoco.MjData(model)
    data.qpos[4:11] = np.array(L.HOME_JOINTS) + 0.2
    mujoco.mj_forward(model, data)
    hand, camera = data.body("hand"), data.camera("wrist")
    axes = hand.xmat.reshape(3, 3).T
    view, up = -camera.xmat.reshape(3, 3)[:, 2], camera.xmat.reshape(3, 3)[:, 1]
    np.testing.assert_allclose(axes @ (camera.xpos - hand.xpos), [-0.1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(axes @ view, [0.26750, 0.00021, 0.96356], atol=1e-4)
    np.testing.assert_allclose(axes @ up, [0.96356, 0.00077, -0.26750], atol=1e-3)
    np.testing.assert_allclose(axes @ (data.site("tcp").xpos - hand.xpos), [0, 0, 0.14], atol=1e-9)
    np.testing.assert_allclose(42 / np.tan(np.deg2rad(model.camera("wrist").fovy[0]) / 2), 54.735, atol=1e-3)
