"""The playtable against CALVIN's published numbers: states, motion, controls, contacts."""

import mujoco
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

import envs.playtable as playtable
from envs.playtable import layout as L
from envs.playtable import scene as S
from envs.playtable.chains import ROBOT_OBS, evaluation_chains
from envs.playtable.kinematics import JOINT_HIGH, JOINT_LOW, euler_to_matrix
from envs.playtable.world import random_blocks

STILL = np.array([[0, 0, 0, 0, 0, 0, 1.0]])
ORDERS = {"A": "pink blue red", "B": "red blue pink", "C": "blue red pink", "D": "red blue pink"}
SIZES = {"A": "middle big small", "B": "small big middle", "C": "big small middle", "D": "middle small big"}
"""Of red, blue and pink."""


@pytest.fixture(scope="module")
def worlds():
    return {scene: playtable.make(scene, cameras={}) for scene in "ABCD"}


def table(**values):
    """scene_obs (1, 24) of scene D: blocks apart on table and plank, controls as named."""
    scene = np.zeros((1, 24))
    scene[0, 6:] = [0.05, -0.12, 0.46, 0, 0, 0, 0.23, -0.12, 0.46, 0, 0, 0, -0.24, 0.09, 0.461, 0, 0, 0]
    for name, value in values.items():
        scene[0, ["slider", "drawer", "button", "switch", "lightbulb", "led"].index(name)] = value
    return scene


def start(world, scene=None, robot=ROBOT_OBS):
    return world.reset(options={"robot_obs": robot[None], "scene_obs": table() if scene is None else scene})


def roll(world, action, steps=1):
    """robot_obs and scene_obs after each of some equal actions, (steps, 15) and (steps, 24)."""
    infos = [world.step(np.array([action], float))[4] for _ in range(steps)]
    return (np.concatenate([info[name] for info in infos]) for name in ("robot_obs", "scene_obs"))


# --- states


def test_the_home_joints_give_the_published_pose(worlds):
    observation, info = start(worlds["D"])
    np.testing.assert_allclose(info["robot_obs"][0], ROBOT_OBS, atol=1e-5)
    np.testing.assert_array_equal(observation["observation.state"], info["robot_obs"].astype(np.float32))
    np.testing.assert_array_equal(observation["observation.environment_state"], info["scene_obs"].astype(np.float32))


def test_scene_obs_is_laid_out_as_calvins(worlds):
    for scene, world in worlds.items():
        put = np.concatenate([[0.1, 0.05, 0.001, 0.02, 1, 0], np.zeros(18)])
        put[6:] = [0.0, -0.1, 0.46, 0, 0, 0.3, 0.12, -0.1, 0.46, 0, 0, 0.6, 0.24, -0.1, 0.46, 0, 0, 0.9]
        start(world, put[None])
        (state,) = world.states()
        assert (state.slider, state.drawer, state.button, state.switch) == tuple(put[:4])
        assert (state.lightbulb, state.led) == (True, False)
        for i, colour in enumerate(ORDERS[scene].split()):
            np.testing.assert_allclose(state.blocks[colour].position, put[6 + 6 * i : 9 + 6 * i])
            yaw = 2 * np.arctan2(state.blocks[colour].quaternion[3], state.blocks[colour].quaternion[0])
            np.testing.assert_allclose(yaw, put[11 + 6 * i])


def test_each_control_moves_its_own_entry(worlds):
    model = S.build("D")
    axes = {"slide": (-1, 0, 0), "drawer": (0, -1, 0), "button": (0, 0, -1), "switch": (0, 0.5, 0.866)}
    data = mujoco.MjData(model)
    for i, (name, axis) in enumerate(axes.items()):
        body = model.body(name).id
        data.qpos[:4] = 0
        mujoco.mj_kinematics(model, data)
        before = data.xpos[body].copy()
        data.qpos[i] = 0.01
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(data.xpos[body] - before, 0.01 * np.array(axis), atol=1e-5)


@pytest.mark.parametrize(("scene", "slide"), [("A", 0.28), ("B", 0.304), ("C", 0.24), ("D", 0.28)])
def test_joint_ranges_and_block_sizes(scene, slide):
    model = S.build(scene)
    ranges = [model.joint(f"base__{name}").range for name in ("slide", "drawer", "button", "switch")]
    np.testing.assert_allclose(ranges, [[0, slide], [0, 0.22], [0, 0.02], [0, 0.088]])
    lengths = {"small": 0.04, "middle": 0.056, "big": 0.08}
    for colour, size in zip(("red", "blue", "pink"), SIZES[scene].split(), strict=True):
        np.testing.assert_allclose(2 * model.geom(f"block_{colour}").size, [lengths[size], 0.04, 0.04])
        np.testing.assert_allclose(model.body(f"block_{colour}").mass, 1.0)


HANDLES = {
    "switch": ((-0.060, -0.008, 0.0), (0.060, 0.024, 0.064)),
    "slide_": ((0.0, -0.120, 0.0), (0.281, 0.120, 0.080)),
    "slide_handle": ((0.119, -0.080, 0.056), (0.161, 0.081, 0.080)),
    "drawer_handle": ((-0.121, -0.261, 0.340), (0.121, -0.238, 0.382)),
}
"""Least and greatest x, y and z of geoms in their links' frames, metres: CALVIN's collision meshes at its scale of 0.8. The
drawer's is in the table's frame."""


@pytest.mark.parametrize("name", HANDLES)
def test_handles_have_the_originals_extents(name):
    model = S.build("D")
    geoms = [model.geom(i) for i in range(model.ngeom) if model.geom(i).name.startswith(name)]
    low = np.min([geom.pos - geom.size for geom in geoms], axis=0)
    high = np.max([geom.pos + geom.size for geom in geoms], axis=0)
    # The door is 10 mm shorter at both ends than its mesh, which slides in grooves.
    np.testing.assert_allclose([low, high], HANDLES[name], atol=0.0105 if name == "slide_" else 0.0065)


def test_the_lever_is_an_arch_and_not_a_block():
    model = S.build("D")
    under = np.array([0.0, 0.008, 0.02])
    for name in ("switch_bar", "switch_post_left", "switch_post_right"):
        assert (np.abs(under - model.geom(name).pos) > model.geom(name).size).any()


shares = st.lists(st.floats(0, 1), min_size=16, max_size=16).map(np.array)


@settings(max_examples=40)
@given(scene=st.sampled_from("ABCD"), share=shares, seed=st.integers(0, 99), grip=st.sampled_from((-1.0, 1.0)))
def test_a_reset_reproduces_any_start(worlds, scene, share, seed, grip):
    layout = L.layout_of(scene)
    robot = np.concatenate([np.zeros(6), [0.08 * share[0]], JOINT_LOW + share[1:8] * (JOINT_HIGH - JOINT_LOW), [grip]])
    table = random_blocks(np.random.default_rng(seed), layout)
    table[:4] = layout.joint_ranges[:, 1] * share[8:12]
    table[4:6] = share[12:14] > 0.5
    table[9:11] = 3 * (share[14:] - 0.5)  # roll and pitch of the first block
    _, info = start(worlds[scene], table[None], robot)
    np.testing.assert_allclose(info["scene_obs"][0], table, atol=1e-9)
    np.testing.assert_allclose(info["robot_obs"][0, 6:], robot[6:], atol=1e-12)


def test_the_default_start_has_three_blocks_apart(worlds):
    for scene, world in worlds.items():
        for seed in range(5):
            _, info = world.reset(seed=seed)
            blocks = info["scene_obs"][0, 6:].reshape(3, 6)
            (state,) = world.states()
            assert not any(block.touches & {"block_red", "block_blue", "block_pink"} for block in state.blocks.values())
            assert (blocks[:, 2] >= L.TABLE_TOP + 0.02).all(), scene
            np.testing.assert_allclose(info["robot_obs"][0], L.HOME_ROBOT_OBS, atol=1e-5)


def test_observations_are_in_their_space():
    for world in (playtable.make(), playtable.make("AB", 3, {"wrist": (20, 30)})):
        observation, _ = world.reset(seed=0)
        assert world.observation_space.contains(observation)
        observation, reward, terminated, truncated, _ = world.step(world.action_space.sample())
        assert world.observation_space.contains(observation)
        assert world.observation_space == batch_space(world.single_observation_space, world.num_envs)
        assert {"observation.images." + c: (*size, 3) for c, size in world.vla_spec.cameras.items()} == {
            name: space.shape for name, space in world.single_observation_space.items() if "images" in name
        }
        for nothing in (reward, terminated, truncated):
            assert nothing.shape == (world.num_envs,)
            assert not nothing.any()


# --- motion


def motion(world, action, steps):
    robot, _ = roll(world, action, steps)
    return robot - ROBOT_OBS


def test_tracking_is_calvins(worlds):
    """CALVIN's own figures at full speed (0.02 m a step); the tenth is near the arm's reach, where Bullet falls behind."""
    world = worlds["D"]
    start(world)
    x = motion(world, [1, 0, 0, 0, 0, 0, 1], 10)[:, 0]
    np.testing.assert_allclose(x[[0, 1, 2, 4]], [0.0098, 0.0248, 0.0423, 0.0798], atol=3e-3)
    np.testing.assert_allclose(x[9], 0.174, atol=0.01)
    start(world)
    z = motion(world, [0, 0, -1, 0, 0, 0, 1], 4)[:, 2]
    np.testing.assert_allclose(z, [-0.0102, -0.0258, -0.0438, -0.0628], atol=1e-3)
    start(world)
    yaw = motion(world, [0, 0, 0, 0, 0, 1, 1], 10)[:, 5]
    np.testing.assert_allclose(yaw[-1], 0.458, atol=0.01)


def test_an_action_of_zero_stays(worlds):
    start(worlds["D"])
    drift = motion(worlds["D"], [0, 0, 0, 0, 0, 0, 1], 60)
    assert np.abs(drift[:, :6]).max() < 1e-5
    assert np.abs(drift[:, :6] - drift[0, :6]).max() < 1e-6


def test_the_gripper_closes_and_opens(worlds):
    start(worlds["D"])
    width = ROBOT_OBS[6] + motion(worlds["D"], [0, 0, 0, 0, 0, 0, -1], 6)[:, 6]
    assert width[0] < 0.04
    assert np.abs(width[3:]).max() < 2e-3
    robot, _ = roll(worlds["D"], [0, 0, 0, 0, 0, 0, 0.4], 6)
    np.testing.assert_allclose(robot[3:, 6], 0.08, atol=2e-3)
    np.testing.assert_array_equal(robot[:, 14], 1.0)


def test_the_target_cannot_run_away(worlds):
    """Thirty steps into the table, then back: the hand turns round at once, as the leash holds the target near it."""
    start(worlds["D"], table(drawer=0.0))
    down, _ = roll(worlds["D"], [0.3, 1, -1, 0, 0, 0, -1], 40)
    assert down[-1, 2] > L.TABLE_TOP
    up, _ = roll(worlds["D"], [0, 0, 1, 0, 0, 0, -1], 6)
    assert up[-1, 2] > down[-1, 2] + 0.02


# --- controls


def controls(world, scene, steps=1):
    start(world, scene)
    _, after = roll(world, STILL[0], steps)
    return after


def test_a_pressed_button_at_reset_toggles_the_led_at_the_first_step(worlds):
    for led in (0.0, 1.0):
        assert start(worlds["D"], table(button=0.02, led=led))[1]["scene_obs"][0, 5] == led
        after = controls(worlds["D"], table(button=0.02, led=led), 20)
        np.testing.assert_array_equal(after[:, 5], 1 - led)
        assert abs(after[-1, 2]) < 1e-3  # it springs back


def test_a_button_at_rest_leaves_the_led_alone(worlds):
    for led in (0.0, 1.0):
        np.testing.assert_array_equal(controls(worlds["D"], table(led=led), 5)[:, 5], led)


def test_pressing_toggles_once_for_each_press(worlds):
    world, seen = worlds["D"], []
    saved = None
    start(world, table(led=1))
    for _ in range(3):
        for depth in (0.02, 0.02, 0.0, 0.0):  # pressed for two samples, then let go, by setting the joint
            saved = world.save()
            saved[0, 1 + 2] = depth
            world.restore(saved)
            _, after = roll(world, STILL[0])
            seen.append(after[0, 5])
    assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("switch", "bulb", "then"),
    [(0, 0, 0), (0, 1, 1), (0.088, 1, 1), (0.088, 0, 1)],
    ids=["off", "lit though off", "on", "dark though on"],
)
def test_the_switch_counts_as_off_after_a_reset(worlds, switch, bulb, then):
    """So a bulb that is lit though the switch is off stays lit; a switch that is on lights it at the first step."""
    assert start(worlds["D"], table(switch=switch, lightbulb=bulb))[1]["scene_obs"][0, 4] == bulb
    np.testing.assert_array_equal(controls(worlds["D"], table(switch=switch, lightbulb=bulb), 3)[:, 4], then)


def test_the_switch_sets_the_bulb_at_its_threshold(worlds):
    assert controls(worlds["D"], table(switch=0.0445))[0, 4] == 1
    assert controls(worlds["D"], table(switch=0.0435))[0, 4] == 0


def test_controls_stay_where_they_are_put(worlds):
    for scene, world in worlds.items():
        put = table(slider=0.1, drawer=0.1, switch=0.05)
        put[0, 6:9] = [-0.1, -0.12, 0.46]
        after = controls(world, put, 30)
        np.testing.assert_allclose(after[-1, [0, 1, 3]], [0.1, 0.1, 0.05], atol=1e-4, err_msg=scene)


@pytest.mark.parametrize("joint", ["base__slide", "base__drawer", "base__switch"])
def test_doors_resist_with_four_newtons(joint):
    """Pushed with more, they accelerate by the rest over their mass; with less, they stay (softer friction creeps 0.2 mm)."""
    model = S.build("D")
    ways = {}
    for force in (1.0, 3.8, 4.4):
        data = mujoco.MjData(model)
        data.qpos[model.joint(joint).qposadr[0]] = 0.03
        data.qfrc_applied[model.joint(joint).dofadr[0]] = force
        for _ in range(S.PHYSICS_HZ // 4):
            mujoco.mj_step(model, data)
        ways[force] = data.joint(joint).qpos[0] - 0.03
    mass = {"base__slide": 1.543, "base__drawer": 4.231, "base__switch": 0.239}[joint]
    np.testing.assert_allclose(ways[4.4], 0.4 / mass * 0.25**2 / 2, rtol=0.05)
    assert max(abs(ways[1.0]), abs(ways[3.8])) < 1e-5


# --- contacts


def test_blocks_rest_where_calvins_do(worlds):
    scene = table(drawer=0.22)
    scene[0, 6:9] = [0.18, -0.28, 0.363]
    after_drawer = controls(worlds["D"], scene, 60)[-1]
    scene = table()
    scene[0, 12:15] = scene[0, 6:9] + [0, 0, 0.0405]
    stacked = controls(worlds["D"], scene, 60)[-1]
    rest = [stacked[8], stacked[20], after_drawer[8], stacked[14]]
    np.testing.assert_allclose(rest, [0.4599, 0.4610, 0.3624, 0.50], atol=3e-4)


def test_contacts_name_the_parts(worlds):
    scene = table(drawer=0.22)
    scene[0, 6:9] = [0.18, -0.28, 0.3624]
    scene[0, 12:15] = [0.23, -0.12, 0.46]
    controls(worlds["D"], scene, 10)
    (state,) = worlds["D"].states()
    assert {colour: block.touches for colour, block in state.blocks.items()} == {
        "red": {"drawer"},
        "blue": {"base"},
        "pink": {"plank"},
    }
    assert state.robot_touches == frozenset()
    assert max(np.abs(block.linear_velocity).max() for block in state.blocks.values()) < 1e-3


def test_the_chains_start_settled(worlds):
    for chain in evaluation_chains(1000)[::100]:
        _, info = start(worlds["D"], chain.scene_obs[None], chain.robot_obs)
        np.testing.assert_allclose(info["robot_obs"][0], chain.robot_obs, atol=1e-5)
        np.testing.assert_allclose(info["scene_obs"][0], chain.scene_obs, atol=1e-9)
        _, after = roll(worlds["D"], STILL[0], 10)
        np.testing.assert_allclose(after[-1], chain.scene_obs, atol=1e-3)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_spin_is_told_in_the_world_frame(worlds, seed):
    """A block thrown and turning: its quaternion's change agrees with the angular velocity."""
    rng = np.random.default_rng(seed)
    world, scene = worlds["D"], table()
    scene[0, 6:12] = [0.1, -0.2, 1.5, *rng.uniform(-1, 1, 3)]
    start(world, scene)
    saved = world.save()
    spin = 1 + 34 + 13 + 3  # past time, qpos and the velocities of controls, arm, fingers and, linear, of the red block
    saved[0, spin : spin + 3] = rng.uniform(-3, 3, 3)
    world.restore(saved)
    (before,) = world.states()
    world.step(STILL)
    (after,) = world.states()
    turn, mean = np.empty(3), np.add(before.blocks["red"].angular_velocity, after.blocks["red"].angular_velocity) / 2
    inverse, change = np.empty(4), np.empty(4)
    mujoco.mju_negQuat(inverse, np.array(before.blocks["red"].quaternion))
    mujoco.mju_mulQuat(change, np.array(after.blocks["red"].quaternion), inverse)
    mujoco.mju_quat2Vel(turn, change, 1 / 30)
    np.testing.assert_allclose(turn, mean, atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(before.blocks["red"].angular_velocity), np.linalg.norm(saved[0, spin : spin + 3]))


def test_the_hand_frame_is_the_state(worlds):
    """robot_obs's Euler angles are extrinsic xyz: at home the fingers point down."""
    _, info = start(worlds["D"])
    np.testing.assert_allclose(euler_to_matrix(info["robot_obs"][0, 3:6])[:, 2], [0, 0, -1], atol=0.06)
