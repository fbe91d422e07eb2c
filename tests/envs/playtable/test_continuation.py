"""A playtable's future depends on its state and the actions alone: saved and restored, alone and in company, after anything."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs.playtable as playtable
from envs.playtable.single import PlaytableEnv
from vla.spec import UserError

SMALL = {"static": (40, 40), "wrist": (24, 24)}
STEPS = 40


def starts(scenes, seed=0):
    """scene_obs (N, 24): three blocks in a row before the hand, turned by chance."""
    rng = np.random.default_rng(seed)
    table = np.zeros((len(scenes), 24))
    for i, x in enumerate((-0.02, 0.08, 0.18)):
        table[:, 6 + 6 * i : 9 + 6 * i] = [x, -0.11, 0.46]
        table[:, 11 + 6 * i] = rng.uniform(-3, 3, len(scenes))
    return table


def reaching(count, seed=0):
    """(STEPS, count, 7) actions that go down to the blocks and sweep along them, the same for every world."""
    rng = np.random.default_rng(seed)
    actions = np.concatenate([rng.uniform(-0.5, 0.5, (STEPS, 6)), np.sign(rng.normal(size=(STEPS, 1)))], axis=1)
    actions[:16, :3] += [0.0, 0.35, -0.45]
    actions[16:, 0] += 0.5
    return np.repeat(actions[:, None], count, axis=1)


def put(world, scene_obs):
    home = np.tile(playtable.world.L.HOME_ROBOT_OBS, (world.num_envs, 1))
    return world.reset(options={"robot_obs": home, "scene_obs": scene_obs})


def play(world, actions):
    """robot_obs and scene_obs after each step, (steps, N, 39)."""
    infos = [world.step(action)[4] for action in actions]
    return np.array([np.concatenate([info["robot_obs"], info["scene_obs"]], axis=1) for info in infos])


def test_a_restored_world_goes_on_bit_for_bit():
    world = playtable.make("ABCD", 4, cameras={})
    actions = reaching(4)
    put(world, starts("ABCD"))
    play(world, actions[:20])
    saved = world.save()
    future, end = play(world, actions[20:]), world.save()
    assert (np.ptp(future[:, :, 15 + 6 :], axis=0).max(axis=1) > 0.01).all(), "blocks move in every world"

    world.restore(saved)
    np.testing.assert_array_equal(world.save(), saved)
    np.testing.assert_array_equal(play(world, actions[20:]), future)
    np.testing.assert_array_equal(world.save(), end)

    other = playtable.make("ABCD", 4, cameras={}, threads=2)
    play(other, reaching(4, seed=1))
    other.restore(saved)
    np.testing.assert_array_equal(play(other, actions[20:]), future)
    np.testing.assert_array_equal(other.save(), end)

    for i, scene in enumerate("ABCD"):
        alone = playtable.make(scene, 1, cameras={})
        alone.restore(saved[i : i + 1])
        np.testing.assert_array_equal(play(alone, actions[20:, :1])[:, 0], future[:, i])


def test_another_process_goes_on_bit_for_bit(tmp_path):
    world = playtable.make("BD", 2, cameras=SMALL)
    put(world, starts("BD"))
    actions = reaching(2)
    play(world, actions[:20])
    np.savez(tmp_path / "before.npz", saved=world.save(), actions=actions[20:])
    play(world, actions[20:])
    script = (
        "import sys, numpy as np, envs.playtable as playtable\n"
        f"world = playtable.make('BD', 2, {SMALL})\n"
        "file = np.load(sys.argv[1])\n"
        "world.restore(file['saved'])\n"
        "for action in file['actions']: observation = world.step(action)[0]\n"
        "np.savez(sys.argv[2], end=world.save(), static=observation['observation.images.static'])\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "before.npz", tmp_path / "after.npz"], check=True, timeout=300)
    after = np.load(tmp_path / "after.npz")
    np.testing.assert_array_equal(after["end"], world.save())
    image = world.observe(np.ones(2, bool))["observation.images.static"]
    np.testing.assert_array_equal(after["static"], image)


def test_the_past_leaves_no_trace_in_a_reset():
    """Unlike in the original: not in physics, latches or look, also where only some worlds are reset."""
    scene_obs, actions = starts("DD"), reaching(2)
    fresh = playtable.make("D", 2, cameras={})
    put(fresh, scene_obs)
    first, expected = fresh.save(), play(fresh, actions)

    used = playtable.make("D", 2, cameras={})
    used.reset(seed=5, options={"look": np.array([7, 8])})
    play(used, reaching(2, seed=3))
    put(used, scene_obs)
    np.testing.assert_array_equal(used.save(), first)
    np.testing.assert_array_equal(play(used, actions), expected)

    home = np.tile(playtable.world.L.HOME_ROBOT_OBS, (2, 1))
    before = used.save()
    used.reset(options={"robot_obs": home, "scene_obs": scene_obs, "reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(used.save()[0], before[0])
    np.testing.assert_array_equal(used.save()[1], first[1])
    np.testing.assert_array_equal(play(used, actions)[:, 1], expected[:, 1])


@pytest.mark.parametrize("neighbours", [1, 7])
def test_neighbours_make_no_difference(neighbours):
    scene_obs, actions = starts("C", seed=2), reaching(1)
    alone = playtable.make("C", 1, SMALL)
    put(alone, scene_obs)
    expected, image = play(alone, actions), alone.observe(np.ones(1, bool))["observation.images.wrist"]

    scenes = "ABCDABCD"[: neighbours + 1]
    others = starts(scenes, seed=4)
    place = len(scenes) // 2
    many = playtable.make(scenes[:place] + "C" + scenes[place + 1 :], len(scenes), SMALL)
    others[place] = scene_obs
    put(many, others)
    theirs = np.random.default_rng(0).uniform(-1, 1, (STEPS, len(scenes), 7))
    theirs[:, place] = actions[:, 0]
    np.testing.assert_array_equal(play(many, theirs)[:, place], expected[:, 0])
    images = many.observe(np.ones(len(scenes), bool))["observation.images.wrist"]
    np.testing.assert_array_equal(images[place], image[0])


def test_the_same_seed_gives_the_same_start():
    one, two = playtable.make("AC", 3, cameras={}), playtable.make("AC", 3, cameras={})
    two.reset(seed=1)
    np.testing.assert_array_equal(one.reset(seed=9)[1]["scene_obs"], two.reset(seed=9)[1]["scene_obs"])
    assert not np.array_equal(one.reset(seed=9)[1]["scene_obs"], one.reset(seed=10)[1]["scene_obs"])
    by_list = two.reset(seed=[9, None, 11])[1]["scene_obs"]
    np.testing.assert_array_equal(by_list[[0, 2]], one.reset(seed=9)[1]["scene_obs"][[0, 2]])


# --- pictures


def changed(before, after, camera="static"):
    key = f"observation.images.{camera}"
    return [not np.array_equal(a, b) for a, b in zip(before[key], after[key], strict=True)]


def test_look_and_observe_render_where_they_are_asked_to():
    world = playtable.make("D", 2, SMALL)
    first = put(world, starts("DD"))[0]
    action = reaching(2)[0]
    world.look(np.array([True, False]))
    second = world.step(action)[0]
    assert changed(first, second) == [True, False]
    third = world.observe(np.array([False, True]))
    assert changed(second, third) == [False, True]
    np.testing.assert_array_equal(third["observation.state"], second["observation.state"])
    assert changed(third, world.observe(np.ones(2, bool))) == [False, False]
    third["observation.images.static"][:] = 0
    assert world.observe(np.zeros(2, bool))["observation.images.static"].any(), "images are the caller's own"
    world.look(np.ones(2, bool))
    assert changed(second, world.step(action)[0]) == [True, True]


def test_worlds_do_the_same_unseen():
    seen, unseen = playtable.make("A", 1, SMALL), playtable.make("A", 1, cameras={})
    for world in (seen, unseen):
        put(world, starts("A"))
    np.testing.assert_array_equal(play(seen, reaching(1)), play(unseen, reaching(1)))


def test_random_looks_follow_the_seed_and_are_saved():
    def make(randomize=1.0):
        return playtable.make("B", 3, SMALL, randomize=randomize)

    world = make()
    first = world.reset(seed=3)[0]
    assert changed(first, make().reset(seed=3)[0]) == [False] * 3
    assert all(changed(first, make().reset(seed=4)[0]))
    plain = make(0.0)
    own = plain.reset(seed=3)[0]
    assert all(changed(first, plain.restore(plain.save())))
    restored = plain.restore(world.save())
    assert changed(first, restored) == [False] * 3
    assert changed(first, restored, "wrist") == [False] * 3
    looks = np.array([0, 5, 5])
    chosen = plain.reset(seed=3, options={"look": looks})[0]
    assert changed(own, chosen) == [False, True, True]


def test_randomize_is_the_share_of_random_looks():
    world = playtable.make("D", 200, cameras={}, randomize=0.5)
    world.reset(seed=0)
    looks = world.save()[:, -2]
    assert 70 < np.count_nonzero(looks) < 130
    assert len(set(looks)) > 70


# --- gymnasium


@pytest.mark.filterwarnings("error", "ignore:.*(is -infinity|is infinity):UserWarning")  # positions have no bounds
def test_gymnasiums_checker_is_content():
    env = gymnasium.make("playtable/Playtable-v0", cameras=SMALL, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_the_single_world_is_a_row_of_the_vector():
    env = gymnasium.make("playtable/Playtable-v0", scene="B", render_mode="rgb_array").unwrapped
    worlds = gymnasium.make_vec("playtable/Playtable-v0", num_envs=3, vectorization_mode="vector_entry_point", scene="B")
    assert isinstance(env, PlaytableEnv)
    assert isinstance(worlds, playtable.Playtable)
    assert worlds.num_envs == 3
    scene = starts("B")[0]
    home = playtable.world.L.HOME_ROBOT_OBS
    one, _ = env.reset(options={"robot_obs": home, "scene_obs": scene})
    many, _ = put(worlds, np.tile(scene, (3, 1)))
    for _ in range(2):
        assert set(one) == set(many)
        for name, value in one.items():
            np.testing.assert_array_equal(value, many[name][1])
        np.testing.assert_array_equal(env.render(), many["observation.images.static"][1])
        one, reward, terminated, truncated, info = env.step(np.ones(7, np.float32))
        many, *_ = worlds.step(np.ones((3, 7), np.float32))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["scene_obs"].shape == (24,)
    np.testing.assert_array_equal(env.save(), worlds.save()[1])
    env.restore(worlds.save()[2])
    assert env.state() == worlds.states()[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"render_mode": "human"}, "unknown render mode 'human'.*rgb_array"),
        ({"render_mode": "rgb_array", "cameras": {"wrist": (8, 8)}}, "needs the camera 'static'"),
        ({"scene": "AB"}, "scene is 'AB'.*one scene"),
    ],
)
def test_a_single_world_that_cannot_be_made_says_why(arguments, words):
    with pytest.raises(UserError, match=words):
        PlaytableEnv(**arguments)


@pytest.mark.filterwarnings("ignore")
def test_a_world_that_blows_up_stands_still_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log of warnings in the current folder
    world = playtable.make("D", 3, cameras={})
    world.reset(seed=1)
    before = world.save()
    world._qvel[1, 4] = 1e12  # no action does this on purpose, so the arm is kicked by hand
    *_, info = world.step(np.zeros((3, 7)))
    assert info["diverged"].tolist() == [False, True, False]
    after = world.save()
    assert np.array_equal(after[1, 1:35], before[1, 1:35])
    assert after[0, 0] > before[0, 0]
    *_, info = world.step(np.zeros((3, 7)))
    assert not info["diverged"].any()
    assert np.isfinite(world.save()).all()
