"""Each of the 34 rules on hand-built states: done, not done, exactly at the threshold, and the benchmark's quirks."""

from dataclasses import replace
from math import nextafter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from envs.playtable.state import Block, State
from envs.playtable.tasks import TASKS, is_solved, solved, turned
from vla.spec import UserError

TABLE = frozenset({"base"})


def block(x=0.0, y=-0.1, z=0.46, yaw=0.0, roll=0.0, pitch=0.0, touches=TABLE, speed=0.0, spin=0.0) -> Block:
    q = Rotation.from_euler("xyz", (roll, pitch, yaw), degrees=True).as_quat(scalar_first=True)
    return Block((x, y, z), tuple(q), (0.0, speed, 0.0), (0.0, 0.0, spin), frozenset(touches))


def state(red=None, blue=None, pink=None, robot=(), **joints: Any) -> State:
    rest = {"slider": 0.0, "drawer": 0.0, "button": 0.0, "switch": 0.0, "lightbulb": False, "led": False}
    blocks = {"red": red or block(-0.2), "blue": blue or block(0.0), "pink": pink or block(0.2)}
    return State(**{**rest, **joints}, blocks=blocks, robot_touches=frozenset(robot))


@pytest.mark.parametrize("colour", ["red", "blue", "pink"])
@pytest.mark.parametrize(
    ("end", "found"),
    [
        (block(yaw=61), "left"),
        (block(yaw=-61), "right"),
        (block(yaw=59.9), None),
        (block(yaw=60 - 1e-9), None),
        (block(yaw=179), "left"),
        (block(yaw=181), "right"),
        (block(yaw=90, roll=29), "left"),
        (block(yaw=90, roll=31), None),
        (block(yaw=90, pitch=31), None),
        (block(yaw=90, x=0.1), "left"),  # a move of exactly 0.1 m is allowed
        (block(yaw=90, x=0.1 + 1e-9), None),
        (block(yaw=90, z=0.46 + 0.101), None),
        (block(yaw=90, touches={"robot"}), None),
        (block(yaw=90, touches=()), None),
        (block(yaw=90, touches={"robot", "block_red"}), "left"),  # any support will do
        (block(yaw=90, touches={"floor"}), "left"),
    ],
)
def test_rotate(colour: str, end: Block, found: str | None):
    if colour == "red":
        end = replace(end, touches=frozenset("block_blue" if t == "block_red" else t for t in end.touches))
    done = solved(state(**{colour: block()}), state(**{colour: end}))
    assert {t for t in done if t.startswith("rotate")} == ({f"rotate_{colour}_block_{found}"} if found else set())


unit = st.floats(-1, 1)
quaternions = st.tuples(unit, unit, unit, unit).filter(lambda q: np.linalg.norm(q) > 0.1)


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@given(quaternions, quaternions)
def test_turn_agrees_with_scipy(a: tuple, b: tuple):
    q, r = (Rotation.from_quat(v, scalar_first=True) for v in (a, b))
    expected = (r * q.inv()).as_euler("xyz", degrees=True)
    assume(abs(expected[1]) < 89.9)  # at the poles the angles are not unique
    found = turned(Block((0, 0, 0), a), Block((0, 0, 0), b))
    assert np.allclose((np.array(found) - expected + 180) % 360, 180, atol=1e-5)


@given(quaternions)
def test_turn_to_itself_is_nothing(q: tuple):
    assert np.allclose(turned(Block((0, 0, 0), q), Block((0, 0, 0), q)), 0, atol=1e-6)


@pytest.mark.parametrize("colour", ["red", "blue", "pink"])
@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (block(), block(x=0.101), "right"),
        (block(), block(x=-0.101), "left"),
        (block(), block(x=0.1), None),  # strict
        (block(), block(x=nextafter(0.1, 1)), "right"),
        (block(), block(x=-0.1), None),
        (block(), block(y=0.5), None),
        (block(), block(x=0.2, touches={"base", "robot"}), "right"),
        (block(), block(x=0.2, touches={"base", "floor"}), "right"),  # more contacts at the end are fine
        (block(touches={"base", "floor"}), block(x=0.2), None),  # a lost contact is not
        (block(touches={"base", "robot"}), block(x=0.2), "right"),  # the robot's own does not count
        (block(touches={"base"}), block(x=0.2, touches={"plank"}), None),  # another link of the same body
        (block(touches={"plank"}), block(x=0.2, touches={"plank", "slide"}), "right"),  # pushing is not bound to the table top
        (block(touches=()), block(x=0.2), None),
        (block(touches={"robot"}), block(x=0.2), None),
        (block(), block(x=0.2, touches={"robot"}), None),
    ],
)
def test_push(colour: str, start: Block, end: Block, found: str | None):
    done = solved(state(**{colour: start}), state(**{colour: end}))
    assert {t for t in done if t.startswith("push")} == ({f"push_{colour}_block_{found}"} if found else set())


@pytest.mark.parametrize(
    ("name", "start", "end", "found"),
    [
        ("slider", 0.0, 0.151, "move_slider_left"),
        ("slider", 0.0, 0.15, None),
        ("slider", 0.28, 0.12, "move_slider_right"),
        ("slider", 0.15, 0.0, None),
        ("drawer", 0.0, 0.121, "open_drawer"),
        ("drawer", 0.0, 0.12, None),
        ("drawer", 0.22, 0.09, "close_drawer"),
        ("drawer", 0.12, 0.0, None),
    ],
)
def test_doors(name: str, start: float, end: float, found: str | None):
    assert solved(state(**{name: start}), state(**{name: end})) == ({found} if found else set())


@pytest.mark.parametrize("colour", ["red", "blue", "pink"])
@pytest.mark.parametrize(
    ("part", "place", "height"), [("base", "table", 0.05), ("plank", "slider", 0.03), ("drawer", "drawer", 0.05)]
)
def test_lift(colour: str, part: str, place: str, height: float):
    task = f"lift_{colour}_block_{place}"
    start = state(**{colour: block(z=0.0, touches={part})})

    def lifted(z: float, touches: set[str], begin: State = start) -> set[str]:
        return solved(begin, state(**{colour: block(z=z, touches=touches)}))

    assert lifted(height + 0.001, {"robot"}) == {task}
    assert lifted(height, {"robot"}) == set()
    assert lifted(nextafter(height, 1), {"robot"}) == {task}
    assert task not in lifted(0.2, {"robot", part})
    assert task not in lifted(0.2, {"robot", "slide"})
    assert task not in lifted(0.2, set())
    held = state(**{colour: block(z=0.0, touches={part, "robot", "slide"})})
    assert lifted(0.2, {"robot"}, held) == {task}  # it may be held, and touch more, at the start
    aloft = state(**{colour: block(z=0.0, touches={"robot"})})
    assert lifted(0.2, {"robot"}, aloft) == set()


@pytest.mark.parametrize(("part", "task"), [("plank", "place_in_slider"), ("drawer", "place_in_drawer")])
def test_place(part: str, task: str):
    start = state(blue=block(z=0.6, touches={"robot"}), robot={"block_blue"})

    def placed(touches: set[str], robot: set[str] = frozenset(), begin: State = start, speed: float = 0.0) -> bool:
        end = state(blue=block(touches=touches, speed=speed), robot=robot)
        assert not {"place_in_slider", "place_in_drawer"} - {task} & solved(begin, end)
        return task in solved(begin, end)

    assert placed({part})
    assert placed({part, "slide", "block_red"}, robot={"base", "block_red"}, speed=5.0)  # no other end condition
    assert not placed({part, "robot"}, robot={"block_blue"})
    assert not placed({"base"})
    assert not placed(set())
    assert not placed({part}, begin=replace(start, robot_touches=frozenset({"block_blue", "slide"})))
    assert not placed({part}, begin=replace(start, robot_touches=frozenset()))
    assert not placed({part}, begin=replace(start, robot_touches=frozenset({"drawer"})))
    assert not placed({part}, begin=state(blue=block(touches={"robot", "base"}), robot={"block_blue"}))


@pytest.mark.parametrize("colour", ["red", "blue", "pink"])
def test_push_into_drawer(colour: str):
    def pushed(start: set[str], end: set[str]) -> bool:
        return is_solved("push_into_drawer", state(**{colour: block(touches=start)}), state(**{colour: block(touches=end)}))

    assert pushed({"base"}, {"drawer"})
    assert pushed({"base"}, {"drawer", "robot", "base"})  # the robot may touch it at the end
    assert not pushed({"base", "robot"}, {"drawer"})
    assert not pushed({"base", "block_red" if colour != "red" else "block_blue"}, {"drawer"})
    assert not pushed({"plank"}, {"drawer"})
    assert not pushed({"drawer"}, {"drawer"})
    assert not pushed({"base"}, {"base"})


def on(*others: str, **motion: float) -> Block:
    return block(z=0.5, touches={f"block_{o}" for o in others}, **motion)


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (block(), on("red"), True),
        (block(touches={"robot"}), on("red", "pink"), True),
        (block(touches=()), on("pink"), True),
        (on("red"), on("red"), False),
        (on("pink"), on("red"), False),  # it touched a block before
        (block(), block(touches={"block_red", "robot"}), False),
        (block(), block(touches={"block_red", "base"}), False),
        (block(), block(touches=()), False),
        (block(), on("red", speed=0.99, spin=-0.99), True),
        (block(), on("red", speed=1.0), False),
        (block(), on("red", spin=-1.0), False),
        (block(speed=9.0), on("red"), True),
    ],
)
def test_stack(start: Block, end: Block, found: bool):
    assert is_solved("stack_block", state(blue=start), state(blue=end)) is found


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (on("red"), block(), True),
        (on("red", "pink"), block(touches={"robot"}), True),  # in the gripper
        (on("red"), block(touches=()), True),  # in mid-air
        (on("red"), on("pink"), False),
        (block(), block(), False),
        (block(touches={"block_red", "robot"}), block(), False),
        (on("red"), block(speed=9.0), True),  # only the speed at the start matters
        (on("red", speed=-1.0), block(), False),
        (on("red", spin=1.0), block(), False),
    ],
)
def test_unstack(start: Block, end: Block, found: bool):
    assert is_solved("unstack_block", state(blue=start), state(blue=end)) is found


@pytest.mark.parametrize("light", ["lightbulb", "led"])
def test_lights(light: str):
    off, lit = state(**{light: False}), state(**{light: True})
    assert solved(off, lit) == {f"turn_on_{light}"}
    assert solved(lit, off) == {f"turn_off_{light}"}
    assert solved(off, off) == solved(lit, lit) == set()
    assert solved(state(**{light: np.bool_(False)}), state(**{light: np.bool_(True)})) == {f"turn_on_{light}"}


def test_names_and_order():
    assert len(TASKS) == 34
    assert TASKS[0] == "rotate_red_block_right"
    assert TASKS[13] == "move_slider_right"
    assert TASKS[33] == "push_into_drawer"
    for task in ("", "open_the_drawer"):
        with pytest.raises(UserError, match=repr(task)):
            is_solved(task, state(), state())
    with pytest.raises(UserError, match="juggle"):
        solved(state(), state(), ["open_drawer", "juggle"])
    assert solved(state(), state(drawer=0.2, slider=0.2), ["open_drawer"]) == {"open_drawer"}
