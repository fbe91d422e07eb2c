"""CALVIN's own info dictionaries lead to the verdicts of CALVIN's own oracle."""

import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.playtable.state import PARTS, State
from envs.playtable.tasks import TASKS, from_calvin_info, solved
from vla.spec import UserError

ROBOT, TABLE_UID, FLOOR = 0, 5, 6
BLOCK_UIDS = {"block_red": 2, "block_blue": 3, "block_pink": 4}
LINKS = {"base_link": -1, "button_link": 0, "switch_link": 1, "slide_link": 2, "drawer_link": 3, "led_link": 4, "light_link": 5,
         "plank_link": 6}  # fmt: skip
# Who can touch a block, as (body, link): the links of the robot's fingers count as one body.
OTHERS = [(ROBOT, 10), (ROBOT, 12), (FLOOR, -1), *((TABLE_UID, link) for link in LINKS.values())]


def contact(a: int, b: int, link: int) -> tuple:
    """A PyBullet contact: flag, body a, body b, link a, link b, then points and forces."""
    return (0, a, b, -1, link, (0, 0, 0), (0, 0, 0), (0, 0, 1), 0.0, 1.0, 0.0, (0, 0, 0), 0.0, (0, 0, 0))


def calvin_info(joints: list, lights: list, blocks: dict[str, dict], robot: list) -> dict:
    uids = BLOCK_UIDS
    return {
        "robot_info": {"uid": ROBOT, "contacts": tuple(contact(ROBOT, *pair) for pair in robot)},
        "scene_info": {
            "fixed_objects": {"table": {"uid": TABLE_UID, "links": LINKS, "contacts": ()}},
            "movable_objects": {
                name: {
                    "uid": uids[name],
                    "current_pos": tuple(value["pos"]),
                    "current_orn": tuple(value["orn"]),
                    "current_lin_vel": tuple(value["lin"]),
                    "current_ang_vel": tuple(value["ang"]),
                    "contacts": tuple(contact(uids[name], *pair) for pair in value["contacts"]),
                }
                for name, value in blocks.items()
            },
            "doors": {"base__slide": {"current_state": joints[0]}, "base__drawer": {"current_state": joints[1]}},
            "buttons": {"base__button": {"joint_state": joints[2], "logical_state": 0}},
            "switches": {"base__switch": {"joint_state": joints[3], "logical_state": 0}},
            "lights": {"lightbulb": {"logical_state": lights[0]}, "led": {"logical_state": lights[1]}},
        },
    }


def raw_oracle(start: dict, end: dict) -> set[str]:
    """The rules once more, straight on the raw dictionaries and PyBullet tuples, independent of State."""
    a, b = start["scene_info"], end["scene_info"]
    table, links = a["fixed_objects"]["table"]["uid"], a["fixed_objects"]["table"]["links"]
    found = set()
    uids = {o["uid"] for o in a["movable_objects"].values()}
    calm = lambda o: bool(np.all(np.abs([*o["current_lin_vel"], *o["current_ang_vel"]]) < 1))  # noqa: E731
    for name, before in a["movable_objects"].items():
        after = b["movable_objects"][name]
        bodies = [{c[2] for c in o["contacts"]} for o in (before, after)]
        pairs = [{(c[2], c[4]) for c in o["contacts"]} for o in (before, after)]
        moved = np.subtract(after["current_pos"], before["current_pos"])
        relative = Rotation.from_quat(after["current_orn"]) * Rotation.from_quat(before["current_orn"]).inv()
        x, y, z = relative.as_euler("xyz", degrees=True)
        if np.linalg.norm(moved) <= 0.1 and bodies[1] - {ROBOT} and abs(x) < 30 and abs(y) < 30:
            found |= {f"rotate_{name[6:]}_block_left"} if 60 < z < 180 else set()
            found |= {f"rotate_{name[6:]}_block_right"} if -180 < z < -60 else set()
        rest = [{p for p in pair if p[0] != ROBOT} for pair in pairs]
        if rest[0] and rest[1] and rest[0].issubset(rest[1]):
            found |= {f"push_{name[6:]}_block_right"} if moved[0] > 0.1 else set()
            found |= {f"push_{name[6:]}_block_left"} if moved[0] < -0.1 else set()
        for place, link, height in (("table", "base", 0.05), ("slider", "plank", 0.03), ("drawer", "drawer", 0.05)):
            if moved[2] > height and (table, links[f"{link}_link"]) in pairs[0] and bodies[1] == {ROBOT}:
                found.add(f"lift_{name[6:]}_block_{place}")
        if pairs[0] == {(table, links["base_link"])} and (table, links["drawer_link"]) in pairs[1]:
            found.add("push_into_drawer")
        if not bodies[0] & uids and bodies[1] & uids and not bodies[1] - uids and calm(after):
            found.add("stack_block")
        if bodies[0] & uids and not bodies[0] - uids and not bodies[1] & uids and calm(before):
            found.add("unstack_block")
        if {c[2] for c in start["robot_info"]["contacts"]} == {before["uid"]} and bodies[0] == {ROBOT}:
            let_go = before["uid"] not in {c[2] for c in end["robot_info"]["contacts"]}
            found |= {"place_in_slider"} if let_go and (table, links["plank_link"]) in pairs[1] else set()
            found |= {"place_in_drawer"} if let_go and (table, links["drawer_link"]) in pairs[1] else set()
    for joint, limit, grown, shrunk in (
        ("base__slide", 0.15, "move_slider_left", "move_slider_right"),
        ("base__drawer", 0.12, "open_drawer", "close_drawer"),
    ):
        change = b["doors"][joint]["current_state"] - a["doors"][joint]["current_state"]
        found |= {grown} if change > limit else {shrunk} if change < -limit else set()
    for light in ("lightbulb", "led"):
        change = (a["lights"][light]["logical_state"], b["lights"][light]["logical_state"])
        found |= {f"turn_on_{light}"} if change == (0, 1) else {f"turn_off_{light}"} if change == (1, 0) else set()
    return found


# Few values each, around the thresholds, so that every rule comes true now and then.
ANGLES = list(product((0, 0, 29, 31), (0, 0, 40), (-170, -100, -59, 0, 61, 100)))
TURNS = Rotation.from_euler("xyz", ANGLES, degrees=True).as_quat()


def random_info(random: np.random.Generator) -> dict:
    def block(name: str) -> dict:
        # Between none and three contacts; blocks and the parts that tasks ask for are the likeliest.
        likely = [(ROBOT, 10), (TABLE_UID, -1), (TABLE_UID, LINKS["drawer_link"]), (TABLE_UID, LINKS["plank_link"])]
        pairs = OTHERS + 3 * likely + 4 * [(uid, -1) for other, uid in BLOCK_UIDS.items() if other != name]
        return {
            "pos": random.choice([0.0, 0.02, 0.04, 0.06, 0.11, -0.11], 3, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]),
            "orn": TURNS[random.integers(len(TURNS))],
            "lin": random.choice([0.0, 0.99, 1.0, -1.0], 3, p=[0.85, 0.05, 0.05, 0.05]),
            "ang": random.choice([0.0, 0.99, 1.0, -1.0], 3, p=[0.85, 0.05, 0.05, 0.05]),
            "contacts": [pairs[random.integers(len(pairs))] for _ in range(random.choice([0, 1, 1, 1, 2, 2, 3]))],
        }

    blocks = {name: block(name) for name in BLOCK_UIDS}
    holds = [(BLOCK_UIDS[name], -1) for name, value in blocks.items() if (ROBOT, 10) in value["contacts"]]
    holds += [(TABLE_UID, LINKS["slide_link"])] * bool(random.random() < 0.2)
    joints = random.choice([0.0, 0.05, 0.13, 0.16, 0.22], 4)
    return calvin_info(joints.tolist(), random.integers(0, 2, 2).tolist(), blocks, holds)


def test_calvins_dictionaries_get_the_same_verdict():
    random = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(6000):
        start, end = random_info(random), random_info(random)
        verdict = raw_oracle(start, end)
        assert solved(from_calvin_info(start), from_calvin_info(end)) == verdict
        seen.update(verdict)
    assert min(seen[task] for task in TASKS) >= 5, seen


def grasped(name: str, part: str) -> tuple[dict, dict]:
    """A start in which the robot alone holds a block, and an end in which it lies on a part of the table."""
    base = {"pos": (0, 0, 0), "orn": (0, 0, 0, 1), "lin": (0, 0, 0), "ang": (0, 0, 0), "contacts": [(TABLE_UID, -1)]}
    held = {n: base | ({"contacts": [(ROBOT, 10), (ROBOT, 12)]} if n == name else {}) for n in BLOCK_UIDS}
    laid = {n: base | ({"contacts": [(TABLE_UID, LINKS[part])]} if n == name else {}) for n in BLOCK_UIDS}
    uid = BLOCK_UIDS[name]
    return calvin_info([0] * 4, [0, 0], held, [(uid, -1)]), calvin_info([0] * 4, [0, 0], laid, [])


@pytest.mark.parametrize("name", BLOCK_UIDS)
def test_calvins_placing(name: str):
    for part, task in (("plank_link", "place_in_slider"), ("drawer_link", "place_in_drawer")):
        start, end = grasped(name, part)
        assert solved(from_calvin_info(start), from_calvin_info(end)) == raw_oracle(start, end) == {task}


def test_calvins_dictionary_is_read_in_full():
    start, _ = grasped("block_pink", "plank_link")
    scene = start["scene_info"]
    scene["doors"]["base__slide"]["current_state"] = 0.1
    scene["buttons"]["base__button"]["joint_state"] = 0.02
    scene["switches"]["base__switch"]["joint_state"] = 0.088
    scene["lights"]["led"]["logical_state"] = 1
    red = scene["movable_objects"]["block_red"]
    red["current_orn"], red["contacts"] = (0.1, 0.2, 0.3, 0.9), (contact(2, FLOOR, -1), contact(2, 3, -1))
    read = from_calvin_info(start)
    assert (read.slider, read.drawer, read.button, read.switch) == (0.1, 0, 0.02, 0.088)
    assert (read.lightbulb, read.led) == (False, True)
    assert read.blocks["red"].quaternion == (0.9, 0.1, 0.2, 0.3)
    assert read.blocks["red"].touches == {"floor", "block_blue"}
    assert read.blocks["pink"].touches == {"robot"}
    assert read.robot_touches == {"block_pink"}
    assert read.blocks["blue"].touches | read.robot_touches <= PARTS


def test_unknown_links_are_told():
    start, _ = grasped("block_red", "plank_link")
    start["scene_info"]["fixed_objects"]["table"]["links"] = LINKS | {"shelf_link": 9}
    with pytest.raises(UserError, match="shelf_link"):
        from_calvin_info(start)


def test_a_state_survives_json():
    random = np.random.default_rng(1)
    for _ in range(50):
        read = from_calvin_info(random_info(random))
        again = State.from_dict(json.loads(json.dumps(read.to_dict())))
        assert again == read
        assert hash(again) == hash(read)
    assert read != from_calvin_info(random_info(random))
