"""The evaluation chains are the published ones, from the generator up."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.playtable import chains
from envs.playtable.benchmark import Benchmark
from envs.playtable.chain_draws import draw, next_word, seeded, shuffle
from envs.playtable.chains import Condition, condition_hash, effects, evaluation_chains, feasible, initial_conditions
from envs.playtable.tasks import TASKS
from vla.spec import UserError

START = Condition(0, 0, "right", "closed", "table", "table", "slider_right")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        chains._published.cache_clear()
        yield
    chains._published.cache_clear()


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 200))
def test_generator_is_numpys_legacy_one(seed: int, size: int):
    ours, theirs = seeded(seed), np.random.RandomState(seed)
    for _ in range(30):  # some 6000 words at most: the twister turns over several times
        order = np.arange(size)
        shuffle(ours, order)
        assert order.tolist() == theirs.permutation(size).tolist()
    assert next_word(ours) == theirs.randint(2**32, dtype=np.uint32)


@pytest.mark.parametrize("seed", [0, 1, 191])
def test_draw_is_numpys_choice(seed: int):
    anything_goes = np.zeros((1, 34), np.int64)
    kinds = np.arange(34)
    ours = draw(seed, 100, 5, 0, anything_goes, kinds)
    theirs = np.random.RandomState(seed)
    assert ours.tolist() == [theirs.choice(34, size=5, replace=False).tolist() for _ in range(100)]


def test_chains_are_the_published_ones():
    found = evaluation_chains()
    text = json.dumps([(chain.initial, chain.tasks) for chain in found], indent=4)
    assert len(text) == 467_691
    assert hashlib.sha256(text.encode()).hexdigest() == "c99e041c255df3408ebf3bbb4feea8b407e17e60e7c07d172a6ea7ba6680e8ca"
    slots = [task for chain in found for task in chain.tasks]
    assert (slots.count("place_in_slider"), slots.count("turn_off_led"), slots.count("unstack_block")) == (398, 185, 81)
    assert sum(chain.initial["led"] for chain in found) == 480


def test_impossible_chains_are_marked_and_kept():
    assert [i for i, chain in enumerate(evaluation_chains()) if not chain.feasible] == [704, 771, 907, 954, 977]


def test_feasible_follows_the_hand_and_not_the_symbol():
    # The door stands right, so a hand places into the left half; the door then moves over it.
    tasks = ("lift_red_block_table", "place_in_slider", "move_slider_left", "lift_red_block_slider")
    assert not feasible(tasks, START)
    assert feasible(tasks[:3], START)
    # A block that the start put there is where the symbols say.
    assert feasible(("move_slider_left", "lift_pink_block_slider"), START)


def test_a_damaged_cache_is_replaced(monkeypatch: pytest.MonkeyPatch):
    first = evaluation_chains(3)
    file = chains._cache_file()
    assert file.is_file()
    for damage in (file.read_bytes()[:-10], b"\xff\xfe", b"[]"):
        file.write_bytes(damage)
        chains._published.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(chains, "draw_chains", lambda: [(START, ["open_drawer"])])
            with pytest.raises(RuntimeError, match="published"):
                evaluation_chains(3)
    chains._published.cache_clear()
    assert [c.tasks for c in evaluation_chains(3)] == [c.tasks for c in first]
    chains._published.cache_clear()
    monkeypatch.setattr(chains, "draw_chains", lambda: pytest.fail("the mended cache was not used"))
    assert [c.tasks for c in evaluation_chains(3)] == [c.tasks for c in first]


def test_hash_is_calvins():
    assert condition_hash(START) == 432992106


def test_start_states():
    assert len(initial_conditions()) == 192
    table, right = [(0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.119995140, 0.459990010)], 0.070341633
    for chain in evaluation_chains():
        scene, initial = chain.scene_obs, chain.initial
        assert chain.robot_obs.shape == (15,)
        assert scene.shape == (24,)
        assert scene[0] == (0.28 if initial["slider"] == "left" else 0)
        assert scene[1] == (0.22 if initial["drawer"] == "open" else 0)
        assert scene[2] == 0
        assert scene[3] == (0.088 if initial["lightbulb"] else 0)
        assert tuple(scene[4:6]) == (initial["lightbulb"], initial["led"])
        places = [tuple(scene[i : i + 3]) for i in (6, 12, 18)]
        assert len(set(places)) == 3
        for i, colour in enumerate(("red", "blue", "pink")):
            where = initial[f"{colour}_block"]
            if where == "table":
                assert places[i] in table
            else:
                assert (places[i][0] == right) == (where == "slider_right")
            assert tuple(scene[9 + 6 * i : 11 + 6 * i]) == (0, 0)
            assert 3 * np.pi / 8 <= scene[11 + 6 * i] <= 5 * np.pi / 8


def test_equal_starts_are_equal_and_read_only():
    by_start: dict[str, np.ndarray] = {}
    for chain in evaluation_chains():
        seen = by_start.setdefault(str(chain.initial), chain.scene_obs)
        assert np.array_equal(seen, chain.scene_obs)
    assert len(by_start) == 192
    with pytest.raises(ValueError, match="read-only"):
        evaluation_chains(1)[0].scene_obs[0] = 1


def test_symbolic_rules():
    assert effects("lift_pink_block_slider", START) == []  # behind the door
    assert effects("lift_red_block_drawer", START) == []
    held = effects("lift_red_block_table", START)[0]
    assert held.red_block == "grasped"
    assert {task for task in TASKS if effects(task, held)} == {"place_in_slider", "stack_block"}
    stacked = effects("stack_block", held)[0]
    assert (stacked.red_block, stacked.blue_block) == ("stacked_top", "stacked_bottom")
    assert effects("unstack_block", stacked) == [START]
    assert effects("stack_block", effects("lift_pink_block_slider", START._replace(slider="left"))[0]) != []
    opened = effects("open_drawer", START)[0]
    assert effects("push_into_drawer", opened) == []  # only one block is out of the way
    assert effects("push_into_drawer", opened._replace(blue_block="slider_left"))[0].red_block == "drawer"
    assert effects("turn_off_led", START) == []
    assert effects("turn_on_led", START)[0].led == 1


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_wrong_count_is_told(count: int):
    with pytest.raises(UserError, match=str(count)):
        evaluation_chains(count)


def test_benchmark_is_the_front_door():
    benchmark = Benchmark()
    assert [c.tasks for c in benchmark.chains(5)] == [c.tasks for c in evaluation_chains(1000)[:5]]
    assert benchmark.instruction("open_drawer") == "pull the handle to open the drawer"
    assert benchmark.instruction("open_drawer", "train", 1) != benchmark.instruction("open_drawer", "train", 0)
    with pytest.raises(UserError, match="open_drawer"):
        benchmark.instruction("open_drawer", "validation", 1)
    with pytest.raises(UserError, match="-1"):
        benchmark.instruction("open_drawer", "train", -1)
    with pytest.raises(UserError, match="juggle"):
        benchmark.instruction("juggle")
