"""The 1000 evaluation chains of CALVIN's LH-MTLC protocol, drawn by the published algorithm, with their start states.

A symbolic model of the table says which tasks may follow each other. Chains are drawn at random from all orders of five
tasks and kept where the model allows them; their start state is drawn with a seed hashed from the symbolic start.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.playtable.state import COLOURS
from envs.playtable.tasks import TASKS
from vla.spec import UserError

COUNT, LENGTH = 1000, 5
# sha256 of the published list as JSON text with indent 4.
CHECKSUM = "c99e041c255df3408ebf3bbb4feea8b407e17e60e7c07d172a6ea7ba6680e8ca"

BLOCK_FIELDS = tuple(f"{colour}_block" for colour in COLOURS)

# fmt: off
ROBOT_OBS = np.array([
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124, 1.03987629, 2.11978254,
    -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
])
# fmt: on
SLIDER_PLACES = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
TABLE_PLACES = (
    (5.00000896e-02, -1.20000177e-01, 4.59990009e-01),
    (2.29995412e-01, -1.19995140e-01, 4.59990010e-01),
)


class Condition(NamedTuple):
    """What the symbolic model knows. A block is on the "table", in "slider_left", "slider_right" or the "drawer", "grasped",
    "stacked_top" or "stacked_bottom"."""

    led: int
    lightbulb: int
    slider: str
    drawer: str
    red_block: str
    blue_block: str
    pink_block: str
    grasped: int = 0

    def where(self, place: str) -> list[str]:
        """The blocks (field names) in a place."""
        return [block for block in BLOCK_FIELDS if getattr(self, block) == place]

    def put(self, places: dict[str, Any], grasped: int = 0) -> Condition:
        """The same with some blocks elsewhere: field name -> place."""
        return self._replace(grasped=grasped, **places)


@dataclass(frozen=True, eq=False)
class Chain:
    """Five tasks to do in a row from one start, in scene D.

    robot_obs (15,) and scene_obs (24,) float64, read-only, as CALVIN orders them (blocks red, blue, pink); initial: the
    symbolic start; feasible: False where the chain asks to lift a block that the chain itself has hidden behind the door.
    """

    tasks: tuple[str, ...]
    robot_obs: np.ndarray
    scene_obs: np.ndarray
    feasible: bool

    @property
    def start(self) -> dict[str, np.ndarray]:
        """The world's reset options."""
        return {"robot_obs": self.robot_obs, "scene_obs": self.scene_obs}

    initial: dict[str, Any]


def evaluation_chains(count: int = COUNT) -> list[Chain]:
    """The first `count` (1 to 1000) of the published chains; raises UserError for another count.

    The first call on a machine draws them (a few CPU-seconds) and leaves them in the user's cache folder.
    """
    if not 1 <= count <= COUNT:
        raise UserError(f"the number of chains is {count}: choose 1 to {COUNT}.")
    return [_chain(Condition(**initial), tuple(tasks)) for initial, tasks in _published()[:count]]


def effects(task: str, now: Condition) -> list[Condition]:
    """All that the task can lead to in the symbolic model; empty where its precondition does not hold."""
    words = task.split("_")
    if now.grasped:
        (held,) = now.where("grasped")
        match words:
            case ["place", "in", "slider"]:
                return [now.put({held: f"slider_{now.slider}"})]
            case ["place", "in", "drawer"] if now.drawer == "open":
                return [now.put({held: "drawer"})]
            case ["stack", "block"]:
                return [now.put({held: "stacked_top", below: "stacked_bottom"}) for below in now.where("table")]
        return []
    match words:
        case ["rotate" | "push", colour, "block", "left" | "right"] if f"{colour}_block" in now.where("table"):
            return [now]
        case ["move", "slider", side] if now.slider != side:
            return [now._replace(slider=side)]
        case ["open", "drawer"] if now.drawer == "closed":
            return [now._replace(drawer="open")]
        case ["close", "drawer"] if now.drawer == "open":
            return [now._replace(drawer="closed")]
        case ["lift", colour, "block", place] if _in_reach(place, getattr(now, f"{colour}_block"), now):
            return [now.put({f"{colour}_block": "grasped"}, grasped=1)]
        case ["unstack", "block"]:
            pairs = product(now.where("stacked_top"), now.where("stacked_bottom"))
            return [now.put({top: "table", bottom: "table"}) for top, bottom in pairs]
        case ["turn", wanted, "lightbulb" | "led" as light] if getattr(now, light) == (wanted == "off"):
            return [now._replace(**{light: int(wanted == "on")})]
        case ["push", "into", "drawer"] if (
            now.drawer == "open" and len(now.where("slider_left") + now.where("slider_right")) == 2
        ):
            return [now.put({block: "drawer"}) for block in now.where("table")]
    return []


def _in_reach(place: str, block: str, now: Condition) -> bool:
    """Whether a block that is at `block` can be lifted from the table, drawer or slider."""
    if place == "slider":
        return block == f"slider_{_other(now.slider)}"
    return block == place and (place == "table" or now.drawer == "open")


def category(task: str) -> str:
    """What the five tasks of a chain must all differ in."""
    words = task.split("_")
    if words[0] in ("rotate", "push") and words[2] == "block":
        return "rotate or push"
    if words[0] == "lift":
        return f"lift from {words[-1]}"
    return {"move": "slider", "open": "drawer", "close": "drawer", "place": "place", "turn": "light"}.get(words[0], task)


def feasible(tasks: tuple[str, ...], start: Condition) -> bool:
    """Whether every lift_*_slider finds its block in the half that the door leaves open.

    The symbolic model puts a placed block into the half where the door is; a real hand can only put it into the other one.
    """
    now, half = start, {block: place for block, place in start._asdict().items() if str(place).startswith("slider_")}
    for task in tasks:
        if task == "place_in_slider":
            half[now.where("grasped")[0]] = f"slider_{_other(now.slider)}"
        elif category(task) == "lift from slider":
            colour = task.split("_")[1]
            if half[f"{colour}_block"] == f"slider_{now.slider}":
                return False
        (now,) = effects(task, now)
    return True


def initial_scene(start: Condition) -> np.ndarray:
    """scene_obs (24,) float64 of scene D for a symbolic start, drawn with the seed that belongs to it."""
    random = np.random.RandomState(condition_hash(start))  # the benchmark is defined by this legacy stream
    table = list(TABLE_PLACES)
    random.shuffle(table)
    scene = np.zeros(24)
    scene[0] = 0.28 if start.slider == "left" else 0.0
    scene[1] = 0.22 if start.drawer == "open" else 0.0
    scene[3] = 0.088 if start.lightbulb else 0.0
    scene[4], scene[5] = start.lightbulb, start.led
    spots = {
        "red_block": table[0],
        "blue_block": table[1 if start.red_block == "table" else 0],
        "pink_block": table[1],
    }
    for i, block in enumerate(BLOCK_FIELDS):
        scene[6 + 6 * i : 9 + 6 * i] = SLIDER_PLACES.get(getattr(start, block), spots[block])
        scene[11 + 6 * i] = random.uniform(pi / 2 - pi / 8, pi / 2 + pi / 8)
    return scene


def condition_hash(start: Condition) -> int:
    """The seed of a symbolic start: FNV-1 of 32 bits that begins at 0, over the UTF-16-LE text of its values."""
    value = 0
    for byte in f"dict_values({list(start)})".encode("utf-16-le"):
        value = (value * 16777619 & 0xFFFFFFFF) ^ byte
    return value


def initial_conditions() -> list[Condition]:
    """The 192 symbolic starts: one or two blocks on the table, at most one in each half of the cabinet."""
    places = ("table", "slider_right", "slider_left")
    everything = (Condition(*c) for c in product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), places, places, places))
    return [
        c
        for c in everything
        if len(c.where("table")) in (1, 2) and max(len(c.where("slider_right")), len(c.where("slider_left"))) <= 1
    ]


def _other(side: str) -> str:
    return "left" if side == "right" else "right"


def _chain(start: Condition, tasks: tuple[str, ...]) -> Chain:
    robot, scene = ROBOT_OBS.copy(), initial_scene(start)
    robot.flags.writeable = scene.flags.writeable = False
    return Chain(tasks, robot, scene, feasible(tasks, start), start._asdict())


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydra-vla" / "evaluation_chains.json"


@cache
def _published() -> list[tuple[dict[str, Any], list[str]]]:
    """(symbolic start, tasks) of all chains, from the cache file where it holds exactly the published text."""
    file = _cache_file()
    text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
    if hashlib.sha256(text.encode()).hexdigest() != CHECKSUM:
        text = json.dumps([(start._asdict(), tasks) for start, tasks in draw_chains()], indent=4)
        if hashlib.sha256(text.encode()).hexdigest() != CHECKSUM:
            raise RuntimeError("the drawn chains are not the published ones: NumPy's legacy shuffle has changed")
        _write(file, text)
    return json.loads(text)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(text, "utf-8")
        fresh.replace(file)
    except OSError:
        pass  # A read-only home costs the next process a few seconds, nothing else.


def draw_chains() -> list[tuple[Condition, list[str]]]:
    """Draw all chains: per start as many as its share of 1000, then all shuffled."""
    from envs.playtable.chain_draws import draw  # numba takes a second to import and the cache file spares it

    starts = initial_conditions()
    following = _transitions(starts)
    categories = sorted({category(task) for task in TASKS})
    kinds = np.array([categories.index(category(task)) for task in TASKS])
    shares = [len(part) for part in np.array_split(np.arange(COUNT), len(starts))]
    chains = [
        (start, [TASKS[t] for t in row])
        for i, (start, share) in enumerate(zip(starts, shares, strict=True))
        for row in draw(i, share, LENGTH, i, following, kinds)
    ]
    np.random.RandomState(0).shuffle(chains)
    return chains


def _transitions(starts: list[Condition]) -> np.ndarray:
    """int64 (conditions, tasks): the condition that follows, or -1 unless there is exactly one; `starts` come first."""
    numbers = {start: i for i, start in enumerate(starts)}
    rows: list[list[int]] = []
    queue = list(starts)
    for now in queue:
        rows.append([])
        for task in TASKS:
            after = effects(task, now)
            if len(after) == 1 and after[0] not in numbers:
                numbers[after[0]] = len(queue)
                queue.append(after[0])
            rows[-1].append(numbers[after[0]] if len(after) == 1 else -1)
    return np.array(rows)
