"""What can be attempted: every start of the benchmark allows what its chain asks first, and nothing impossible."""

from dataclasses import replace

import pytest

from envs.playtable.chains import evaluation_chains
from envs.playtable.conditions import cabinet_openings, free_spots_in_cabinet, held, valid_tasks
from envs.playtable.layout import LAYOUTS
from envs.playtable.state import COLOURS, Block, State

D = LAYOUTS["D"]


def start_of(scene, **changes) -> State:
    """The state that a scene_obs of scene D describes, everything at rest and the hand empty."""
    blocks = {}
    for i, colour in enumerate(COLOURS):
        x, y, z = scene[6 + 6 * i : 9 + 6 * i]
        blocks[colour] = Block((float(x), float(y), float(z)), touches=frozenset({"plank" if y > 0 else "base"}))
    joints = dict(zip(("slider", "drawer", "button", "switch"), scene[:4].tolist(), strict=True))
    return replace(State(**joints, lightbulb=bool(scene[4]), led=bool(scene[5]), blocks=blocks), **changes)


def with_block(state: State, colour: str, position: tuple[float, float, float], *touches: str, robot: tuple = ()) -> State:
    block = Block(position, touches=frozenset(touches))
    return replace(state, blocks={**state.blocks, colour: block}, robot_touches=frozenset(robot))


@pytest.fixture
def plain() -> State:
    """Red and blue on the table, pink in the right half; door right, drawer closed, lights off."""
    blocks = {
        "red": Block((0.05, -0.12, 0.46), touches=frozenset({"base"})),
        "blue": Block((0.23, -0.12, 0.46), touches=frozenset({"base"})),
        "pink": Block((0.07, 0.09, 0.461), touches=frozenset({"plank"})),
    }
    return State(0.0, 0.0, 0.0, 0.0, False, False, blocks)


def test_the_first_task_of_every_chain_can_be_attempted():
    barred = {c.tasks[0] for c in evaluation_chains() if c.tasks[0] not in valid_tasks(start_of(c.scene_obs), D)}
    # Chains begin with blocks at x 0.23, and play pushes none to where the hand no longer reaches it from above.
    assert barred <= {f"push_{colour}_block_right" for colour in ("red", "blue", "pink")}


def test_plain_start(plain: State):
    found = set(valid_tasks(plain, D))
    assert {"move_slider_left", "open_drawer", "turn_on_led", "turn_on_lightbulb", "lift_red_block_table"} <= found
    assert not found & {"move_slider_right", "close_drawer", "turn_off_led", "turn_off_lightbulb"}
    assert not found & {"lift_pink_block_slider", "lift_pink_block_table", "stack_block", "unstack_block", "place_in_slider"}
    assert "lift_pink_block_slider" in valid_tasks(replace(plain, slider=0.28), D)
    assert "lift_pink_block_slider" not in valid_tasks(replace(plain, slider=0.14), D)


def test_pushing_needs_a_free_way(plain: State):
    far = with_block(plain, "blue", (0.28, -0.12, 0.46), "base")
    assert "push_blue_block_right" not in valid_tasks(far, D)  # out of reach
    assert "push_blue_block_left" in valid_tasks(with_block(far, "red", (0.05, -0.05, 0.46), "base"), D)
    near = with_block(plain, "blue", (0.14, -0.12, 0.46), "base")
    assert "push_red_block_right" not in valid_tasks(near, D)  # blue is in the way
    assert "push_red_block_left" not in valid_tasks(with_block(plain, "red", (0.0, -0.12, 0.46), "base"), D)  # the button is
    assert "push_red_block_left" in valid_tasks(with_block(plain, "red", (0.05, -0.04, 0.46), "base"), D)


def test_a_full_hand_can_only_put_down(plain: State):
    holding = with_block(plain, "red", (0.05, -0.12, 0.6), "robot", robot=("block_red",))
    assert held(holding) == "red"
    assert valid_tasks(holding, D) == ("place_in_slider", "stack_block")
    assert valid_tasks(replace(holding, drawer=0.2), D) == ("place_in_slider", "place_in_drawer", "stack_block")
    touching = with_block(plain, "red", (0.05, -0.12, 0.46), "robot", "base", robot=("block_red",))
    assert held(touching) is None
    assert valid_tasks(touching, D) == ()


def test_drawer(plain: State):
    opened = replace(plain, drawer=0.2)
    assert "push_into_drawer" in valid_tasks(opened, D)
    assert "push_into_drawer" not in valid_tasks(plain, D)
    beside = with_block(with_block(opened, "blue", (-0.24, 0.09, 0.461), "plank"), "red", (-0.05, -0.12, 0.46), "base")
    assert "push_into_drawer" in valid_tasks(beside, D)  # carried over it
    assert "open_drawer" not in valid_tasks(opened, D)
    assert "close_drawer" in valid_tasks(opened, D)
    inside = with_block(opened, "blue", (0.18, -0.28, 0.362), "drawer")
    assert "lift_blue_block_drawer" in valid_tasks(inside, D)
    assert "lift_blue_block_drawer" not in valid_tasks(with_block(inside, "blue", (0.18, -0.1, 0.362), "drawer"), D)
    assert "lift_blue_block_table" not in valid_tasks(inside, D)


def test_stack(plain: State):
    both = with_block(
        with_block(plain, "red", (0.05, -0.12, 0.46), "base", "block_blue"), "blue", (0.05, -0.12, 0.5), "block_red"
    )
    found = valid_tasks(both, D)
    assert "unstack_block" in found
    assert not {"lift_red_block_table", "lift_blue_block_table", "rotate_red_block_left"} & set(found)


@pytest.mark.parametrize("scene", "ABCD")
def test_the_door_leaves_one_half_open_at_either_end(scene: str, plain: State):
    layout = LAYOUTS[scene]
    for slider, side in ((0.0, layout.slider_left), (layout.slide_range, layout.slider_right)):
        state = replace(plain, slider=slider)
        ((low, high),) = cabinet_openings(state, layout)
        assert max(low, side[0]) < min(high, side[1])
        assert free_spots_in_cabinet(with_block(state, "pink", (0, -0.1, 0.46), "base"), layout)
