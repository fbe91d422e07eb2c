"""Which tasks a robot can attempt right now: the physical reading of a state, for collecting play and for experts.

Stricter than the rules in tasks.py, which only judge what has happened: a block must be in the open, within reach, with room
for the fingers; a door must have enough way left. Metres, world frame; functions that name blocks return their colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot

from envs.playtable.layout import DOOR_WIDTH, Interval, Layout
from envs.playtable.state import BLOCKS, COLOURS, ROBOT, Block, State
from envs.playtable.tasks import TASKS, on_blocks_alone

REACH: Interval = (-0.38, 0.29)
"""x of blocks on the table top that the hand reaches from above."""
PUSH_REACH: Interval = (-0.38, 0.37)
"""x between which blocks are pushed: from the left, the hand stays behind them."""
FINGER_ROOM = 0.09
"""Distance between the centres of two blocks that leaves room for an open hand."""
APART = 0.06
"""Distance between the centres of two blocks from which on the hand can move one aside and take it."""
FINGER = 0.075
"""How far a block's centre stays from the door and the walls of the cabinet."""
PUSH_WAY, AHEAD = 0.105, 0.06
"""How far a block is pushed at least, and how far its centre then stays from the centre of what is ahead."""
LANE = 0.06
"""Half width of what a pushed block and the hand behind it sweep over."""
BUTTON_RADIUS = 0.035
SLIDER_WAY, DRAWER_WAY, DRAWER_RANGE = 0.17, 0.13, 0.22
DRAWER_OPEN = 0.16
"""The least opening of the drawer into which a block is put or pushed."""
DRAWER_HALF_WIDTH, BEFORE_DRAWER = 0.13, 0.15
"""How far from its middle a block is put down in the drawer, and how far one may lie that is pushed straight into it."""
DRAWER_FRONT = -0.21
"""Blocks in the drawer beyond this y are out from under the table."""


def valid_tasks(state: State, layout: Layout) -> tuple[str, ...]:
    """The tasks that can be attempted from this state in this scene, in the order of TASKS."""
    return tuple(task for task in TASKS if can_attempt(task, state, layout))


def can_attempt(task: str, state: State, layout: Layout) -> bool:
    """Whether one task can be attempted: a hand that holds a block can put it down, an empty hand can do the rest."""
    words = task.split("_")
    if held(state):
        match words:
            case ["place", "in", "slider"]:
                return bool(free_spots_in_cabinet(state, layout))
            case ["place", "in", "drawer"]:
                return bool(free_spots_in_drawer(state, layout))
            case ["stack", "block"]:
                return bool(stack_targets(state))
        return False
    if state.robot_touches & BLOCKS:
        return False
    match words:
        case ["rotate", colour, "block", _]:
            return colour in graspable_on_table(state)
        case ["push", colour, "block", side]:
            return can_push(colour, side, state, layout)
        case ["lift", colour, "block", "table"]:
            return colour in graspable_on_table(state)
        case ["lift", colour, "block", "slider"]:
            return colour in graspable_in_cabinet(state, layout)
        case ["lift", colour, "block", "drawer"]:
            return colour in graspable_in_drawer(state)
        case ["move", "slider", "left"]:
            return layout.slide_range - state.slider > SLIDER_WAY
        case ["move", "slider", "right"]:
            return state.slider > SLIDER_WAY
        case ["open", "drawer"]:
            return DRAWER_RANGE - state.drawer > DRAWER_WAY
        case ["close", "drawer"]:
            return state.drawer > DRAWER_WAY
        case ["unstack", "block"]:
            return bool(stacked(state))
        case ["turn", wanted, "lightbulb"]:
            return state.lightbulb == (wanted == "off")
        case ["turn", wanted, "led"]:
            return state.led == (wanted == "off") and button_is_free(state, layout)
        case ["push", "into", "drawer"]:
            return bool(before_the_drawer(state, layout))
    return False


def held(state: State) -> str | None:
    """The block that the hand holds in the air: it touches only the robot, and the robot only it."""
    for colour in COLOURS:
        if state.robot_touches == {f"block_{colour}"} and state.blocks[colour].touches == {ROBOT}:
            return colour
    return None


def lies_on(block: Block, part: str) -> bool:
    """Whether a part of the table is all that the block touches, apart from the robot."""
    return block.touches - {ROBOT} == {part}


def stands_apart(colour: str, state: State) -> bool:
    """No other block is so near that the hand could not part them."""
    x, y, _ = state.blocks[colour].position
    others = (state.blocks[c].position for c in COLOURS if c != colour)
    return all(hypot(x - ox, y - oy) > APART for ox, oy, _ in others)


def graspable_on_table(state: State) -> list[str]:
    return [
        colour
        for colour, block in state.blocks.items()
        if lies_on(block, "base") and REACH[0] < block.position[0] < REACH[1] and stands_apart(colour, state)
    ]


def graspable_in_cabinet(state: State, layout: Layout) -> list[str]:
    """Blocks in the cabinet that the door does not hide."""
    return [
        colour
        for colour, block in state.blocks.items()
        if lies_on(block, "plank")
        and stands_apart(colour, state)
        and any(low < block.position[0] < high for low, high in cabinet_openings(state, layout))
    ]


def graspable_in_drawer(state: State) -> list[str]:
    """Blocks in the drawer that the table does not hide."""
    return [
        colour
        for colour, block in state.blocks.items()
        if lies_on(block, "drawer") and block.position[1] < DRAWER_FRONT and stands_apart(colour, state)
    ]


def cabinet_openings(state: State, layout: Layout) -> list[Interval]:
    """x ranges left and right of the door in which the hand can enter the cabinet."""
    left, right = layout.cabinet
    door = layout.door_left - state.slider
    openings = [
        (left + FINGER, door - FINGER),
        (door + DOOR_WIDTH + FINGER, right - FINGER),
    ]
    return [(low, high) for low, high in openings if low < high]


def free_spots_in_cabinet(state: State, layout: Layout) -> list[float]:
    """x of spots in the open part of the cabinet with finger room around."""
    return [x for opening in cabinet_openings(state, layout) for x in free_spots(opening, state, "plank")]


def free_spots_in_drawer(state: State, layout: Layout) -> list[float]:
    """x of spots in the drawer with finger room around; none while it is not open."""
    if state.drawer < DRAWER_OPEN:
        return []
    return free_spots((layout.drawer_x - DRAWER_HALF_WIDTH, layout.drawer_x + DRAWER_HALF_WIDTH), state, "drawer")


def free_spots(along: Interval, state: State, part: str) -> list[float]:
    """Five x in a row, both ends included, without those too near to a block that touches `part`."""
    taken = [block.position[0] for block in state.blocks.values() if part in block.touches]
    low, high = along
    return [x for x in (low + (high - low) * i / 4 for i in range(5)) if all(abs(x - t) > FINGER_ROOM for t in taken)]


def can_push(colour: str, side: str, state: State, layout: Layout) -> bool:
    """The block lies on the table with a free way to that side and room for the hand behind it."""
    block, sign = state.blocks[colour], 1 if side == "right" else -1
    x, y, _ = block.position
    goal = x + sign * PUSH_WAY
    low, high = sorted((goal + sign * AHEAD, x - sign * 2 * LANE))
    on_the_table = lies_on(block, "base") and all(PUSH_REACH[0] < v < PUSH_REACH[1] for v in (x, goal)) and x < REACH[1]
    return on_the_table and not any(low < ox < high and abs(oy - y) < LANE for ox, oy in obstacles(colour, state, layout))


def obstacles(colour: str, state: State, layout: Layout) -> Iterable[tuple[float, float]]:
    """Where something stands up from the table top: the other blocks and the button."""
    yield layout.button_x, layout.button_y
    yield from (state.blocks[c].position[:2] for c in COLOURS if c != colour)


def before_the_drawer(state: State, layout: Layout) -> list[str]:
    """Blocks on the table that can be pushed towards the robot, over the edge and into the open drawer, or be carried there."""
    if state.drawer < DRAWER_OPEN:
        return []

    def way_is_free(colour: str) -> bool:
        x, y, _ = state.blocks[colour].position
        ahead = (ox for ox, oy in obstacles(colour, state, layout) if oy < y + FINGER_ROOM)
        return abs(x - layout.drawer_x) < BEFORE_DRAWER and all(abs(ox - x) > LANE + 0.02 for ox in ahead)

    carried = graspable_on_table(state)
    return [c for c, b in state.blocks.items() if b.touches == {"base"} and (way_is_free(c) or c in carried)]


def stack_targets(state: State) -> list[str]:
    """Blocks on the table that another can be put on."""
    return [colour for colour, block in state.blocks.items() if colour != held(state) and lies_on(block, "base")]


def stacked(state: State) -> list[str]:
    """Blocks that rest, slow, on blocks alone."""
    return [colour for colour, block in state.blocks.items() if on_blocks_alone(block)]


def button_is_free(state: State, layout: Layout) -> bool:
    """No block stands on or beside the button."""
    positions = (block.position for block in state.blocks.values())
    return all(hypot(x - layout.button_x, y - layout.button_y) > BUTTON_RADIUS + 0.02 for x, y, _ in positions)
