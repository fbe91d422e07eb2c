"""The software renderer against ray casting, closed forms, itself, and MuJoCo's OpenGL renderer where there is one."""

from __future__ import annotations

import hashlib

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.playtable import pixels
from envs.playtable.gl import GLRasteriser
from envs.playtable.raster import Look, Rasteriser, renderer
from vla.spec import UserError

SCENE = """
<mujoco>
  <visual><map znear="0.001"/></visual>
  <asset>
    <mesh name="wedge" vertex="-.1 -.1 -.1  .1 -.1 -.1  .1 .1 -.1  -.1 .1 -.1  -.1 0 .15  .1 0 .15"/>
  </asset>
  <worldbody>
    <camera name="front" pos="0 -2 1.2" xyaxes="1 0 0 0 .5 .866" fovy="40"/>
    <camera name="near" pos="0.03 -.12 .66" xyaxes="1 0.1 0 0 .8 .6" fovy="75"/>
    <geom name="floor" type="plane" size="0 0 1" rgba=".8 .8 .8 1"/>
    <geom name="table" type="box" pos="0 0 .45" size=".6 .4 .05" rgba=".8 .6 .4 1"/>
    <geom name="box" type="box" pos="0 0 .56" size=".06 .06 .06" euler="0 0 30" rgba="1 0 0 1"/>
    <geom name="ball" type="sphere" pos=".3 0 .6" size=".1" rgba="1 1 0 1"/>
    <geom name="pill" type="capsule" pos="-.3 0 .6" size=".05 .08" euler="50 0 20" rgba="0 1 1 1"/>
    <geom name="can" type="cylinder" pos="-.45 -.2 .6" size=".06 .1" euler="10 0 0" rgba="0 .6 0 1"/>
    <geom name="egg" type="ellipsoid" pos=".45 -.2 .58" size=".05 .1 .08" rgba=".5 0 .5 1"/>
    <geom name="wedge" type="mesh" mesh="wedge" pos=".1 .25 .62" euler="0 0 20" rgba=".2 .3 1 1"/>
    <geom name="hidden" type="box" pos="0 -1 1" size=".3 .3 .3" group="3"/>
  </worldbody>
</mujoco>
"""
CAMERAS = {"front": (60, 80), "near": (48, 48)}


def load(xml: str = SCENE) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def poses(*worlds: mujoco.MjData) -> list[np.ndarray]:
    return [np.stack([getattr(d, name) for d in worlds]) for name in ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")]


def with_depth(drawer, arguments, **options):
    count = len(arguments[0])
    depth = {name: np.zeros((count, *size), np.float32) for name, size in drawer.cameras.items()}
    ids = {name: np.zeros((count, *size), np.int32) for name, size in drawer.cameras.items()}
    images = drawer.render(*arguments, depth=depth, segmentation=ids, **options)
    return images, depth, ids


def rays(model: mujoco.MjModel, data: mujoco.MjData, name: str, size: tuple[int, int]) -> np.ndarray:
    """World directions (H, W, 3) through pixel centres, 1 long along the optical axis."""
    camera = model.camera(name).id
    focal = 0.5 * size[0] / np.tan(np.radians(model.cam_fovy[camera]) / 2)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    local = np.stack([(x - size[1] / 2) / focal, (size[0] / 2 - y) / focal, -np.ones(size)], -1)
    return local @ data.cam_xmat[camera].reshape(3, 3).T


def cast(model: mujoco.MjModel, data: mujoco.MjData, name: str, size: tuple[int, int], near: float = 0.01):
    """Depth and geom id of every pixel by MuJoCo's ray casting, starting at the near plane as the renderer does."""
    direction = rays(model, data, name, size).reshape(-1, 3)
    length = np.linalg.norm(direction, axis=1)
    depth, ids = np.full(len(direction), np.inf), np.full(len(direction), -1, np.int32)
    groups, found = np.array([1, 1, 1, 0, 0, 0], np.uint8), np.zeros((1, 1), np.int32)
    for i, ray in enumerate(direction):
        start = data.cam_xpos[model.camera(name).id] + near * ray
        reach = mujoco.mj_ray(model, data, start, ray / length[i], groups, 1, -1, found)
        if reach >= 0:
            depth[i], ids[i] = near + reach / length[i], found[0, 0]
    return depth.reshape(size), ids.reshape(size)


@pytest.fixture(scope="module")
def world() -> tuple[mujoco.MjModel, mujoco.MjData]:
    return load()


@pytest.fixture(scope="module")
def drawer(world) -> Rasteriser:
    return Rasteriser(world[0], CAMERAS)


@pytest.mark.parametrize("name", CAMERAS)
def test_every_kind_of_geom_is_where_rays_meet_it(world, drawer, name):
    model, data = world
    _, depth, ids = with_depth(drawer, poses(data))
    true_depth, true_ids = cast(model, data, name, CAMERAS[name])
    for geom in np.unique(true_ids):
        drawn, true = ids[name][0] == geom, true_ids == geom
        # Round things are drawn as 16-gons, whose outline lies a little inside.
        assert (drawn & true).sum() > 0.9 * (drawn | true).sum() - 3, model.geom(geom).name
    flat = (ids[name][0] == true_ids) & np.isin(true_ids, [model.geom(g).id for g in ("floor", "table", "box", "wedge")])
    assert flat.sum() > 0.4 * flat.size
    np.testing.assert_allclose(depth[name][0][flat], true_depth[flat], atol=1e-4)


def test_depth_is_exact_on_a_slanted_plane(world, drawer):
    model, data = world
    _, depth, ids = with_depth(drawer, poses(data))
    ray = rays(model, data, "front", CAMERAS["front"])
    floor = ids["front"][0] == model.geom("floor").id
    expected = data.cam_xpos[model.camera("front").id, 2] / -ray[..., 2]
    assert floor.sum() > 300
    np.testing.assert_allclose(depth["front"][0][floor], expected[floor], atol=1e-4)


def test_a_box_covers_the_pixels_that_its_corners_project_to():
    model, data = load(
        "<mujoco><worldbody><camera name='c' pos='0 0 2' fovy='90'/>"
        "<geom type='box' pos='.5 .25 .5' size='.25 .125 .5'/></worldbody></mujoco>"
    )
    _, depth, ids = with_depth(Rasteriser(model, {"c": (100, 200)}), poses(data))
    rows, columns = np.nonzero(ids["c"][0] == 0)
    # The top face is 1 m below the camera: 50 pixels a metre, x to the right of column 100, y up from row 50.
    top = depth["c"][0] < 1.0001
    assert np.nonzero(top.any(0))[0][[0, -1]].tolist() == [113, 136] or np.nonzero(top.any(0))[0][[0, -1]].tolist() == [
        112,
        137,
    ]
    assert (rows.max(), columns.max()) == (int(50 - 50 * 0.125 / 2 - 0.5), int(100 + 50 * 0.75 - 0.5))
    assert (depth["c"][0][ids["c"][0] < 0] == np.inf).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_boxes_through_the_near_plane_match_ray_casting(drawer, world, seed):
    model, data = world
    rng = np.random.default_rng(seed)
    moved = mujoco.MjData(model)
    moved.geom_xpos[:], moved.geom_xmat[:], moved.cam_xpos[:] = data.geom_xpos, data.geom_xmat, data.cam_xpos
    moved.cam_xmat[:] = data.cam_xmat
    box, size = model.geom("box").id, CAMERAS["near"]
    moved.geom_xpos[box] = data.cam_xpos[1] + rng.uniform(-0.12, 0.12, 3)
    mujoco.mju_quat2Mat(moved.geom_xmat[box], (q := rng.normal(size=4)) / np.linalg.norm(q))
    _, depth, ids = with_depth(drawer, poses(moved))
    assert depth["near"].min() >= 0.0099
    inside = moved.geom_xmat[box].reshape(3, 3).T @ (data.cam_xpos[1] - moved.geom_xpos[box])
    if (np.abs(inside) < 0.06 * 1.8).all():
        return  # rays from within the box see its back faces, which the renderer leaves out
    true_depth, true_ids = cast(model, moved, "near", size)
    flat = (ids["near"][0] == true_ids) & (true_ids == box)
    np.testing.assert_allclose(depth["near"][0][flat], true_depth[flat], atol=1e-4)
    assert ((ids["near"][0] == box) == (true_ids == box)).mean() > 0.995


def test_the_same_bytes_again_in_batches_and_with_threads(world):
    model, data = world
    other, other_data = load(SCENE.replace('size=".06 .06 .06"', 'size=".03 .08 .05"'))
    worlds, index = [data, other_data, data, other_data, other_data], [0, 1, 0, 1, 1]
    looks = np.stack([Look(ambient=0.4 + 0.05 * i, key_direction=(1, i, 2)).pack() for i in range(5)])
    rgba = np.random.default_rng(0).uniform(0.2, 1, (5, model.ngeom, 4))
    textures = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3))
    tex = np.random.default_rng(2).integers(-1, 3, (5, model.ngeom))
    one = Rasteriser([model, other], CAMERAS, textures)
    many = Rasteriser([model, other], CAMERAS, textures, threads=3)
    together = one.render(*poses(*worlds), model_index=index, look=looks, geom_rgba=rgba, geom_tex=tex)
    threaded = many.render(*poses(*worlds), model_index=index, look=looks, geom_rgba=rgba, geom_tex=tex)
    many.close()
    for i, (d, m) in enumerate(zip(worlds, index, strict=True)):
        alone = one.render(*poses(d), model_index=[m], look=looks[i], geom_rgba=rgba[i][None], geom_tex=tex[i][None])
        for name in CAMERAS:
            np.testing.assert_array_equal(alone[name][0], together[name][i])
            np.testing.assert_array_equal(threaded[name][i], together[name][i])
    assert not np.array_equal(together["front"][0], together["front"][1])
    assert len(pixels.draw.signatures) == len(pixels.cast_shadows.signatures) == 1  # every call fits the one compilation


def test_pixels_are_those_of_every_other_machine(drawer):
    """Poses written out in full, so that only the renderer's own arithmetic decides."""
    position = np.array([[0, 0, 0], [0, 0, 0.45], [0, 0, 0.56], [0.3, 0, 0.6], [-0.3, 0, 0.6], [-0.45, -0.2, 0.6],
                         [0.45, -0.2, 0.58], [0.1, 0.25, 0.62], [0, 0, 0]], float)  # fmt: skip
    turn = np.array([0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1])
    camera = np.array([[1, 0, 0, 0, 0.5, -0.875, 0, 0.875, 0.5], [0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1]])
    images = drawer.render(position[None], np.tile(turn, (1, 9, 1)), np.array([[[0, -2, 1.2], [0.1, 0, 0.9]]]), camera[None])
    digest = hashlib.sha256(b"".join(images[name].tobytes() for name in sorted(images))).hexdigest()
    assert digest[:16] == "255c4472d8276e6a"


def test_masked_worlds_keep_their_images(world, drawer):
    data = world[1]
    out = {name: np.full((3, *size, 3), 7, np.uint8) for name, size in CAMERAS.items()}
    returned = drawer.render(*poses(data, data, data), mask=[True, False, True], out=out)
    fresh = drawer.render(*poses(data))
    for name in CAMERAS:
        assert returned[name] is out[name]
        assert (out[name][1] == 7).all()
        np.testing.assert_array_equal(out[name][2], fresh[name][0])


def test_the_key_light_casts_shadows_where_geometry_says(world):
    model, data = world
    look = Look(key_direction=(0.0, 0.0, 1.0), shadow=1.0, headlight=0.0)
    drawer = Rasteriser(model, {"front": (120, 160)}, region=(0, 0, 0.5, 1.0))
    images, _, ids = with_depth(drawer, poses(data), look=look.pack())
    floor = ids["front"][0] == model.geom("floor").id
    depth = {"front": np.zeros((1, 120, 160), np.float32)}
    drawer.render(*poses(data), depth=depth)
    point = data.cam_xpos[0] + rays(model, data, "front", (120, 160)) * np.where(floor, depth["front"][0], 0)[..., None]
    under = floor & (np.abs(point[..., 0]) < 0.55) & (np.abs(point[..., 1]) < 0.35)
    beside = floor & ((np.abs(point[..., 0]) > 0.65) | (np.abs(point[..., 1]) > 0.45)) & (np.abs(point[..., :2]) < 0.95).all(-1)
    assert under.sum() > 50 < beside.sum()
    grey = images["front"][0][..., 0].astype(float)
    assert np.unique(grey[under]).tolist() == [np.floor(255 * np.float32(0.8) * look.ambient + 0.5)]
    assert np.unique(grey[beside]).tolist() == [min(255, np.floor(255 * 0.8 * (look.ambient + look.key) + 0.5))]
    plain = Rasteriser(model, {"front": (120, 160)}, shadows=False).render(*poses(data), look=look.pack())["front"][0]
    assert (plain[under] == plain[beside][0]).all()


def test_textures_repeat_at_their_scale_and_multiply_the_colour():
    model, data = load(
        "<mujoco><worldbody><camera name='c' pos='0 0 1' fovy='90'/>"
        "<geom type='plane' size='1 1 1' rgba='1 .5 .25 1'/></worldbody></mujoco>"
    )
    stripes = np.zeros((2, 4, 4, 3), np.uint8)
    stripes[0] = 255
    stripes[1, :, :2] = 255
    drawer = Rasteriser(model, {"c": (64, 64)}, stripes, texels_per_metre=[1.0, 8.0], shadows=False)
    look = Look(ambient=1.0, key=0.0, headlight=0.0).pack()
    plain = drawer.render(*poses(data), look=look)["c"][0]
    white = drawer.render(*poses(data), look=look, geom_tex=[[0]])["c"][0]
    striped = drawer.render(*poses(data), look=look, geom_tex=[[1]])["c"][0]
    assert plain[0, 0].tolist() == [255, 128, 64]
    assert np.abs(plain.astype(int) - white).max() <= 1
    # 2 m across 64 pixels; a stripe pair is 4 texels of 1/8 m, 16 pixels; rows are alike.
    np.testing.assert_array_equal(striped[:, :48], striped[:, 16:])
    np.testing.assert_array_equal(striped[0], striped[40])
    assert striped[..., 0].min() == 0
    assert striped[..., 0].max() == 255
    assert 0.4 < (striped[..., 0] / 255).mean() < 0.6


def test_alpha_zero_hides_a_geom(world, drawer):
    model, data = world
    rgba = model.geom_rgba[None].copy()
    rgba[0, model.geom("box").id, 3] = 0
    _, _, ids = with_depth(drawer, poses(data), geom_rgba=rgba)
    _, _, shown = with_depth(drawer, poses(data))
    assert model.geom("box").id not in ids["front"]
    assert model.geom("box").id in shown["front"]
    assert model.geom("hidden").id not in shown["front"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8), st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 1e-30]), st.integers(0, 3))
def test_broken_poses_spoil_no_other_world(drawer, world, geom, value, field):
    broken = [np.repeat(array, 3, 0) for array in poses(world[1])]
    broken[field][1, geom % broken[field].shape[1]] = value
    images, whole = drawer.render(*broken), drawer.render(*poses(world[1]))
    for name in CAMERAS:
        np.testing.assert_array_equal(images[name][0], whole[name][0])
        np.testing.assert_array_equal(images[name][2], whole[name][0])


def test_supersampling_averages_the_larger_picture(world):
    model, data = world
    fine = Rasteriser(model, {"front": (120, 160)}).render(*poses(data))["front"].astype(float)
    smooth = Rasteriser(model, {"front": (60, 80)}, supersample=2).render(*poses(data))["front"]
    mean = fine.reshape(1, 60, 2, 80, 2, 3).mean((2, 4))
    np.testing.assert_allclose(smooth, mean, atol=0.5)


def test_mistakes_are_named(world):
    model, _ = world
    with pytest.raises(UserError, match="camera 'top' is not in the scene: choose among front, near"):
        Rasteriser(model, {"top": (8, 8)})
    with pytest.raises(UserError, match="scene 1 has 1 geoms and 1 cameras, scene 0 has 9 and 2"):
        Rasteriser([model, load("<mujoco><worldbody><camera name='front'/><geom size='1'/></worldbody></mujoco>")[0]], {})
    with pytest.raises(UserError, match="textures have shape"):
        Rasteriser(model, CAMERAS, np.zeros((2, 4, 3), np.uint8))
    drawer, good = Rasteriser(model, CAMERAS), poses(world[1])
    with pytest.raises(UserError, match=r"geom_xmat has shape \(1, 9, 3, 3\)"):
        drawer.render(good[0], good[1].reshape(1, 9, 3, 3), good[2], good[3])
    with pytest.raises(UserError, match="geom_tex holds 1: give numbers below 1"):
        drawer.render(*good, geom_tex=[[1] * 9])
    with pytest.raises(UserError, match="image 'front' has shape"):
        drawer.render(*good, out={name: np.zeros((1, 8, 8, 3), np.uint8) for name in CAMERAS})
    with pytest.raises(UserError, match="renderer 'vulkan' is unknown"):
        renderer("vulkan", model, CAMERAS)


def test_missing_opengl_names_the_package(world, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco.egl", None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(UserError, match="apt-get install libegl1 libgl1-mesa-dri"):
        renderer("gl", world[0], CAMERAS)


def test_opengl_renderers_do_not_break_each_other(world):
    try:
        first = GLRasteriser(world[0], CAMERAS)
        before = first.render(*poses(world[1]))
        second = GLRasteriser(world[0], CAMERAS)
    except UserError as error:
        pytest.skip(str(error))
    first = GLRasteriser(world[0], CAMERAS)  # the one before goes while `second` is the current one
    for drawer in (second, first):
        after = drawer.render(*poses(world[1]))
        for name in CAMERAS:
            np.testing.assert_array_equal(after[name], before[name])
        drawer.close()


@pytest.mark.parametrize("name", CAMERAS)
def test_agrees_with_mujocos_opengl_renderer(world, drawer, name):
    model, data = world
    try:
        gl = GLRasteriser(model, CAMERAS, shadows=False)
    except UserError as error:
        pytest.skip(str(error))
    look = Look(shadow=0.0).pack()
    gl_images, gl_depth, gl_ids = with_depth(gl, poses(data), look=look)
    images, depth, ids = with_depth(drawer, poses(data), look=look)
    for geom in np.unique(gl_ids[name]):
        drawn, true = ids[name] == geom, gl_ids[name] == geom
        assert (drawn & true).sum() > 0.95 * (drawn | true).sum() - 3, geom
    same = (ids[name] == gl_ids[name]) & (ids[name] <= model.geom("box").id)
    np.testing.assert_allclose(depth[name][same], gl_depth[name][same], rtol=2e-2)
    assert np.abs(images[name].astype(int) - gl_images[name]).mean() < 12
    gl.close()
