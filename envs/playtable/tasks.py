"""The 34 tasks of CALVIN: which of them were done between two states.

Same verdicts as the oracle of CALVIN (mees/calvin_env, calvin_env/envs/tasks.py): comparisons are strict, "right" is +x, a
contact is with a part, and all blocks count alike. `start` is the state when the subtask began, `end` the state now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import asin, atan2, degrees, dist
from typing import Any

from envs.playtable.state import BLOCKS, COLOURS, ROBOT, TABLE_PARTS, Block, State, Vector
from vla.spec import UserError


def turned(start: Block, end: Block) -> Vector:
    """The turn R_end R_start^-1 as extrinsic xyz Euler angles in degrees: x and z in [-180, 180], y in [-90, 90]."""
    a, b, c, d = start.quaternion
    e, f, g, h = end.quaternion
    # The product end * conjugate(start).
    w = e * a + f * b + g * c + h * d
    x = f * a - e * b + h * c - g * d
    y = g * a - e * c + f * d - h * b
    z = h * a - e * d + g * b - f * c
    sine = 2 * (w * y - z * x) / (w * w + x * x + y * y + z * z)
    return (
        degrees(atan2(2 * (w * x + y * z), w * w - x * x - y * y + z * z)),
        degrees(asin(max(-1.0, min(1.0, sine)))),
        degrees(atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)),
    )


def slow(block: Block) -> bool:
    """Every component of the linear (m/s) and angular (rad/s) velocity is below 1 in size."""
    return all(abs(v) < 1 for v in (*block.linear_velocity, *block.angular_velocity))


def rotate(colour: str, angle: float, start: State, end: State) -> bool:
    """The block turned by more than `angle` degrees about z (positive = left), hardly tilted or moved, and has a support."""
    before, after = start.blocks[colour], end.blocks[colour]
    if dist(before.position, after.position) > 0.1 or not after.touches - {ROBOT}:
        return False
    x, y, z = turned(before, after)
    far_enough = angle < z < 180 if angle > 0 else -180 < z < angle
    return far_enough and abs(x) < 30 and abs(y) < 30


def push(colour: str, distance: float, start: State, end: State) -> bool:
    """The block moved along x by more than `distance` metres (negative = left) and still touches all that it touched."""
    before, after = start.blocks[colour], end.blocks[colour]
    moved = after.position[0] - before.position[0]
    if not (moved > distance if distance > 0 else moved < distance):
        return False
    support = before.touches - {ROBOT}
    return bool(support) and support <= after.touches


def joint(name: str, distance: float, start: State, end: State) -> bool:
    """The slider or drawer joint changed by more than `distance` metres, in the direction of its sign."""
    moved = getattr(end, name) - getattr(start, name)
    return moved > distance if distance > 0 else moved < distance


def lift(colour: str, height: float, part: str, start: State, end: State) -> bool:
    """The block lay on `part`, perhaps already held, rose by more than `height` metres and is touched by the robot alone."""
    before, after = start.blocks[colour], end.blocks[colour]
    rose = after.position[2] - before.position[2] > height
    return rose and part in before.touches and after.touches == {ROBOT}


def place(part: str, start: State, end: State) -> bool:
    """The block that the robot held, touching nothing else, now lies on `part` without the robot touching it."""
    if len(start.robot_touches) != 1 or not start.robot_touches <= BLOCKS:
        return False
    (name,) = start.robot_touches
    before, after = (state.blocks[name.removeprefix("block_")] for state in (start, end))
    return before.touches == {ROBOT} and part in after.touches and name not in end.robot_touches


def push_into_drawer(start: State, end: State) -> bool:
    """Some block lay on the table touching nothing else and now touches the drawer, whether or not the robot touches it."""
    return any(start.blocks[c].touches == {"base"} and "drawer" in end.blocks[c].touches for c in COLOURS)


def stack(start: State, end: State) -> bool:
    """Some block touched no block and now rests, slow, on blocks alone."""
    return any(not start.blocks[c].touches & BLOCKS and on_blocks_alone(end.blocks[c]) for c in COLOURS)


def unstack(start: State, end: State) -> bool:
    """Some block rested, slow, on blocks alone and now touches no block; it may be in the gripper."""
    return any(on_blocks_alone(start.blocks[c]) and not end.blocks[c].touches & BLOCKS for c in COLOURS)


def on_blocks_alone(block: Block) -> bool:
    return bool(block.touches) and block.touches <= BLOCKS and slow(block)


def light(name: str, on: bool, start: State, end: State) -> bool:
    """The light was in the other state and is now on or off as wanted."""
    return getattr(start, name) != on and getattr(end, name) == on


# In the order of CALVIN's oracle, which is also the order that the evaluation chains are drawn in.
RULES: dict[str, Callable[[State, State], bool]] = {
    "rotate_red_block_right": partial(rotate, "red", -60),
    "rotate_red_block_left": partial(rotate, "red", 60),
    "rotate_blue_block_right": partial(rotate, "blue", -60),
    "rotate_blue_block_left": partial(rotate, "blue", 60),
    "rotate_pink_block_right": partial(rotate, "pink", -60),
    "rotate_pink_block_left": partial(rotate, "pink", 60),
    "push_red_block_right": partial(push, "red", 0.1),
    "push_red_block_left": partial(push, "red", -0.1),
    "push_blue_block_right": partial(push, "blue", 0.1),
    "push_blue_block_left": partial(push, "blue", -0.1),
    "push_pink_block_right": partial(push, "pink", 0.1),
    "push_pink_block_left": partial(push, "pink", -0.1),
    "move_slider_left": partial(joint, "slider", 0.15),
    "move_slider_right": partial(joint, "slider", -0.15),
    "open_drawer": partial(joint, "drawer", 0.12),
    "close_drawer": partial(joint, "drawer", -0.12),
    "lift_red_block_table": partial(lift, "red", 0.05, "base"),
    "lift_red_block_slider": partial(lift, "red", 0.03, "plank"),
    "lift_red_block_drawer": partial(lift, "red", 0.05, "drawer"),
    "lift_blue_block_table": partial(lift, "blue", 0.05, "base"),
    "lift_blue_block_slider": partial(lift, "blue", 0.03, "plank"),
    "lift_blue_block_drawer": partial(lift, "blue", 0.05, "drawer"),
    "lift_pink_block_table": partial(lift, "pink", 0.05, "base"),
    "lift_pink_block_slider": partial(lift, "pink", 0.03, "plank"),
    "lift_pink_block_drawer": partial(lift, "pink", 0.05, "drawer"),
    "place_in_slider": partial(place, "plank"),
    "place_in_drawer": partial(place, "drawer"),
    "stack_block": stack,
    "unstack_block": unstack,
    "turn_on_lightbulb": partial(light, "lightbulb", True),
    "turn_off_lightbulb": partial(light, "lightbulb", False),
    "turn_on_led": partial(light, "led", True),
    "turn_off_led": partial(light, "led", False),
    "push_into_drawer": push_into_drawer,
}
TASKS: tuple[str, ...] = tuple(RULES)


def is_solved(task: str, start: State, end: State) -> bool:
    """Whether one task was done between two states; raises UserError for an unknown task."""
    rule = RULES.get(task)
    if rule is None:
        raise UserError(f"unknown task {task!r}: use one of {', '.join(TASKS)}.")
    return bool(rule(start, end))


def solved(start: State, end: State, tasks: Iterable[str] | None = None) -> set[str]:
    """The tasks, out of `tasks` or of all 34, that were done between two states; raises UserError for an unknown task."""
    return {task for task in (TASKS if tasks is None else tasks) if is_solved(task, start, end)}


def from_calvin_info(info: Mapping[str, Any]) -> State:
    """The State told by an info dictionary of CALVIN's own environment (with use_scene_info=True).

    Contacts there are raw PyBullet tuples: entry 2 is the other body, entry 4 its link. Quaternions there are (x, y, z, w).
    """
    robot, scene = info["robot_info"], info["scene_info"]
    table, objects = scene["fixed_objects"]["table"], scene["movable_objects"]
    bodies = {robot["uid"]: ROBOT} | {value["uid"]: name for name, value in objects.items()}
    links = {-1: "base"} | {link: name.removesuffix("_link") for name, link in table["links"].items()}
    if not set(links.values()) <= TABLE_PARTS:
        raise UserError(f"CALVIN's table has links {sorted(table['links'])}: expected the links of {sorted(TABLE_PARTS)}.")

    def touches(contacts: Iterable[tuple]) -> frozenset[str]:
        # Of the remaining bodies only the floor can collide.
        return frozenset(links[c[4]] if c[2] == table["uid"] else bodies.get(c[2], "floor") for c in contacts)

    def vector(values: Iterable[float]) -> Vector:
        x, y, z = map(float, values)
        return x, y, z

    def block(value: Mapping[str, Any]) -> Block:
        x, y, z, w = map(float, value["current_orn"])
        return Block(
            position=vector(value["current_pos"]),
            quaternion=(w, x, y, z),
            linear_velocity=vector(value["current_lin_vel"]),
            angular_velocity=vector(value["current_ang_vel"]),
            touches=touches(value["contacts"]),
        )

    return State(
        slider=float(scene["doors"]["base__slide"]["current_state"]),
        drawer=float(scene["doors"]["base__drawer"]["current_state"]),
        button=float(scene["buttons"]["base__button"]["joint_state"]),
        switch=float(scene["switches"]["base__switch"]["joint_state"]),
        lightbulb=bool(scene["lights"]["lightbulb"]["logical_state"]),
        led=bool(scene["lights"]["led"]["logical_state"]),
        blocks={colour: block(objects[f"block_{colour}"]) for colour in COLOURS},
        robot_touches=touches(robot["contacts"]),
    )
