"""Scripted experts for the 34 tasks: one stateless policy of the true state.

What to do next follows from the instant alone (see `envs.playtable.hand`), so that a network which sees the same instant can
copy every decision. Each task is a small function from a `View` to the next waypoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from envs.playtable import layout as L
from envs.playtable.hand import (
    ABOVE,
    BESIDE_TABLE,
    CLOSE,
    DEEP_LEAN,
    FINGER,
    FORWARD,
    IN_FRONT,
    INTO_CABINET,
    LEAN,
    NORMAL,
    OPEN,
    PALM,
    SLOPE,
    BlockView,
    Move,
    View,
    approach,
    at,
    grasp,
    in_cabinet,
    lean,
    release,
    steer,
    wrap,
)  # fmt: skip
from envs.playtable.language import task_of
from envs.playtable.scene import CONTROL_HZ
from envs.playtable.world import ACTION_ENTRIES, FRAME, SCENE, SCENE_ENTRIES, STATE_ENTRIES
from vla.policy import Memory, Observation
from vla.spec import ENVIRONMENT_STATE, STATE, TASK, Spec

ROOM = 0.075
"""Between the middles of blocks that stand beside one another, metres."""


def lift(view: View, color: str) -> Move:
    """Take hold and go up; a door in the way is moved aside first."""
    block = view.blocks[color]
    door = view.layout.door_left - view.slider
    if in_cabinet(block) and view.held != color and door - FINGER < block.position[0] < door + L.DOOR_WIDTH + FINGER:
        sign = 1.0 if block.position[0] < door + L.DOOR_WIDTH / 2 else -1.0
        if 0.01 < view.slider < view.layout.slide_range - 0.01 or (sign > 0) == (view.slider > 0.1):
            return move_slider(view, sign)
    move = grasp(view, color)
    return move or Move(view.tcp + [0, 0, 0.05], CLOSE, view.euler[2], view.euler[1])


def rotate(view: View, color: str, sign: float) -> Move:
    """Hold the block where it lies and turn the hand; the grasp leaves room for the turn."""
    move = grasp(view, color, FORWARD - 0.6 * sign)
    if move:
        return move
    block = view.blocks[color]
    rest = L.TABLE_TOP + block.height / 2 - block.position[2]
    return Move(view.tcp + [0, 0, rest], CLOSE, view.euler[2] + 0.2 * sign, lean(view, block.position))


def _shove(view: View, block: BlockView, direction: np.ndarray, pitch: float = 0.0) -> Move:
    """Push a block along a horizontal direction with closed fingers, steering to stay behind its centre."""
    behind = block.reach(direction) + 0.028
    target = block.position - direction * behind
    target[2] = L.TABLE_TOP + 0.018
    across = np.array([-direction[1], direction[0], 0])
    gap = float((block.position - view.tcp) @ direction)
    off = float((block.position - view.tcp) @ across)
    low = view.tcp[2] < L.TABLE_TOP + 0.035
    if low and not view.pinching and view.width < 0.02 and abs(off) < 0.02 and block.reach(direction) < gap < behind + 0.03:
        # At half speed: a block pushed faster slides on by itself.
        ahead = view.tcp + direction * 0.02 + across * off * 0.6
        return Move(np.array([ahead[0], ahead[1], target[2]]), CLOSE, FORWARD, pitch)
    return approach(view, target, CLOSE, FORWARD, pitch)


def push(view: View, color: str, sign: float) -> Move:
    return _shove(view, view.blocks[color], np.array([sign, 0.0, 0.0]))


def push_into_drawer(view: View) -> Move:
    """The block on the table that is nearest to the open drawer; one that lies beside it is carried over and dropped."""
    color = view.held
    if color is None:
        ready = [c for c, b in view.blocks.items() if b.position[1] < 0.02 and b.position[2] > L.TABLE_TOP - 0.02]
        color = min(ready or view.blocks, key=lambda c: _beside_drawer(view, c) + view.blocks[c].position[1])
    block = view.blocks[color]
    if _beside_drawer(view, color) == 0 and view.held is None:
        return _shove(view, block, np.array([0.0, -1.0, 0.0]), LEAN)
    goal = np.array([view.layout.drawer_x, -0.169 - view.drawer / 2, L.TABLE_TOP + 0.03])
    return grasp(view, color) or _carry(view, color, goal, 0.03, LEAN, _upright_yaw(view), ABOVE)


def _beside_drawer(view: View, color: str) -> float:
    """How far along x a block would miss the drawer if it were pushed over the edge, weighted against its distance to it."""
    return 2 * max(0.0, abs(view.blocks[color].position[0] - view.layout.drawer_x) - 0.15)


def move_slider(view: View, sign: float) -> Move:
    """Straddle the handle and shift it; `sign` is along x."""
    handle = view.layout.door_left + L.DOOR_WIDTH / 2 - view.slider
    target = np.array([handle, -0.012, 0.522])
    around = at(view, target, (0.034, 0.02, 0.02)) and view.width > 0.06 and not view.closing
    if around:
        return Move(np.array([view.tcp[0] + 0.05 * sign, *target[1:]]), OPEN, FORWARD, LEAN)
    return approach(view, target, OPEN, FORWARD, LEAN, IN_FRONT)


def move_drawer(view: View, sign: float) -> Move:
    """Closed fingers in the gap behind the handle: pull it (sign -1 along y) or push the front (+1)."""
    target = np.array([view.layout.drawer_x, -0.207 - view.drawer, 0.366])
    hooked = at(view, target, (0.10, 0.045, 0.02)) and view.width < 0.03
    if hooked:
        return Move(np.array([view.tcp[0], view.tcp[1] + 0.05 * sign, target[2]]), CLOSE, FORWARD, LEAN)
    return approach(view, target, CLOSE, FORWARD, LEAN, BESIDE_TABLE)


def flip_switch(view: View, sign: float) -> Move:
    """Push the lever along the slope with closed fingers: up (+1) from below it, down (-1) from above it."""
    # The far lever is so high that the arm reaches over it with its hand almost level, the near one so near that it cannot.
    pitch = DEEP_LEAN if sign < 0 and view.layout.switch_x > 0 else LEAN
    behind, out = (-0.030, 0.077) if sign > 0 else (0.046, 0.056) if pitch == DEEP_LEAN else (0.050, 0.060)
    target = view.lever + SLOPE * behind + NORMAL * out
    offset = view.tcp - target
    along, off = sign * float(offset @ SLOPE), abs(float(offset @ NORMAL))
    if -0.02 < along < 0.03 and off < 0.015 and abs(offset[0]) < 0.03 and view.width < 0.03:
        onwards = target + SLOPE * (float(offset @ SLOPE) + 0.04 * sign)
        return Move(np.array([view.tcp[0], *onwards[1:]]), CLOSE, FORWARD, pitch)
    return approach(view, target, CLOSE, FORWARD, pitch, IN_FRONT)


def press_button(view: View, led: bool) -> Move:
    """Press with closed fingers; a button that is down already is let up first."""
    target = np.array([view.layout.button_x, view.layout.button_y, 0.47])
    if view.button > 0.006 and view.led != led:
        return Move(view.tcp + [0, 0, 0.05], CLOSE)
    return approach(view, target, CLOSE)


def _carry(
    view: View, color: str, goal: np.ndarray, drop: float, pitch: float, yaw: float, entry: np.ndarray, near: float = 0.015
) -> Move:
    """Bring the held block to its goal; let go within `near` metres across and `drop` metres above it."""
    block = view.blocks[color]
    offset = goal - block.position
    if np.hypot(*offset[:2]) < near and offset[2] > -drop and abs(wrap(yaw - view.euler[2])) < 0.25:
        return release(view)
    return approach(view, view.tcp + offset, CLOSE, yaw, pitch, entry, carrying=True)


def _carried(view: View) -> str:
    """The block in the hand, or the nearest one while the fingers open."""
    return view.held or min(view.blocks, key=lambda c: float(np.linalg.norm(view.blocks[c].position - view.tcp)))


def _regrasp(view: View, color: str) -> Move | None:
    """For tasks that begin with a block in the hand: pick it up again if it was lost."""
    return None if view.held == color else grasp(view, color)


def place_in_slider(view: View) -> Move:
    """Into the half of the cabinet that the door leaves open, beside what stands there."""
    s, color = view.layout, _carried(view)
    if not view.closing and view.between(view.blocks[color]) and in_cabinet(view.blocks[color]):
        return release(view)
    move = _regrasp(view, color)
    if move:
        return move
    door = s.door_left - view.slider
    left = (s.cabinet[0] + FINGER, door - FINGER)
    right = (door + L.DOOR_WIDTH + FINGER, s.cabinet[1] - FINGER)
    low, high = max(left, right, key=lambda opening: opening[1] - opening[0])
    standing = [b for c, b in view.blocks.items() if c != color and in_cabinet(b)]
    block = view.blocks[color].position
    inset = min(PALM - FINGER, (high - low) / 2) * (block[1] < 0)  # once it is inside, it may stay where it is
    x = _free_place(block[0], low, high, standing, inset)
    goal = np.array([x, 0.085, L.PLANK_TOP + view.blocks[color].height / 2])
    return _carry(view, color, goal, 0.03, lean(view, goal), _upright_yaw(view), INTO_CABINET, near=0.025)


def place_in_drawer(view: View) -> Move:
    """Into the part of the open drawer that stands out from under the table, beside what lies there."""
    s, color = view.layout, _carried(view)
    if not view.closing and view.between(view.blocks[color]) and view.blocks[color].position[2] < L.TABLE_TOP:
        return release(view)
    move = _regrasp(view, color)
    if move:
        return move
    lying = [b for c, b in view.blocks.items() if c != color and b.position[2] < L.TABLE_TOP - 0.02]
    x = _free_place(view.blocks[color].position[0], s.drawer_x - 0.11, s.drawer_x + 0.11, lying)
    goal = np.array([x, -0.169 - view.drawer / 2, L.DRAWER_FLOOR + view.blocks[color].height / 2 + 0.02])
    return _carry(view, color, goal, 0.03, LEAN, _upright_yaw(view), BESIDE_TABLE)


def _free_place(wish: float, low: float, high: float, others: Sequence[BlockView], inset: float = 0.0) -> float:
    """The x between low and high that is nearest to `wish` and clear of other blocks, or the clearest; as far as there is room
    by `inset` away from both ends.

    Wherever a block is carried its goal is near and moves with it, so that who copies this need not choose between places.
    """
    stood = [float(b.position[0]) for b in others]
    for margin in (inset, 0.0):
        first, last = low + margin, high - margin
        places = np.clip([wish, first, last, *(x + side for x in stood for side in (-ROOM, ROOM))], first, last)
        room = np.array([min((abs(x - other) for other in stood), default=ROOM) for x in places])
        if room.max() >= ROOM - 1e-6:
            break
    return float(min(places[room >= min(ROOM, room.max()) - 1e-6], key=lambda x: abs(x - wish)))


def _upright_yaw(view: View) -> float:
    """Straight ahead, whichever way round the hand is nearer to it."""
    return FORWARD if abs(wrap(view.euler[2] - FORWARD)) < 2.2 else FORWARD + np.pi


def stack_block(view: View) -> Move:
    """Onto the nearest other block that can be reached from above, those on the table first."""
    color = _carried(view)
    block = view.blocks[color]
    others = {c: b for c, b in view.blocks.items() if c != color}
    free = {c: b for c, b in others.items() if b.position[1] < 0.02 and b.position[2] > L.TABLE_TOP} or others
    below = min(free.values(), key=lambda b: float(np.linalg.norm(b.position[:2] - block.position[:2])))
    goal = below.position + [0, 0, below.height / 2 + block.height / 2 + 0.001]
    if not view.closing and view.between(block) and np.hypot(*(block.position - goal)[:2]) < 0.02:
        return release(view)
    move = _regrasp(view, color)
    return move or _carry(view, color, goal, 0.004, view.euler[1] - _tilt(view, block), view.euler[2], ABOVE, near=0.007)


def _tilt(view: View, block: BlockView) -> float:
    """How far a held block leans the way the fingers point: the hand pitches back by as much to hold it level."""
    up = block.axes[:, block.upright] * np.sign(block.axes[2, block.upright])
    return float(np.arctan2(up[0] * np.cos(view.euler[2]) + up[1] * np.sin(view.euler[2]), up[2]))


def unstack_block(view: View) -> Move:
    """Take the upper block off."""
    tops = [
        color
        for color, block in view.blocks.items()
        if any(
            other is not block
            and np.hypot(*(block.position - other.position)[:2]) < 0.055
            and 0.02 < block.position[2] - other.position[2] < 0.06
            for other in view.blocks.values()
        )
    ]
    return lift(view, tops[0] if tops else max(view.blocks, key=lambda c: view.blocks[c].position[2]))


EXPERTS: dict[str, Callable[[View], Move]] = {
    "move_slider_left": partial(move_slider, sign=-1.0),
    "move_slider_right": partial(move_slider, sign=1.0),
    "open_drawer": partial(move_drawer, sign=-1.0),
    "close_drawer": partial(move_drawer, sign=1.0),
    "place_in_slider": place_in_slider,
    "place_in_drawer": place_in_drawer,
    "stack_block": stack_block,
    "unstack_block": unstack_block,
    "turn_on_lightbulb": partial(flip_switch, sign=1.0),
    "turn_off_lightbulb": partial(flip_switch, sign=-1.0),
    "turn_on_led": partial(press_button, led=True),
    "turn_off_led": partial(press_button, led=False),
    "push_into_drawer": push_into_drawer,
}
for _color in L.BLOCK_NAMES:
    for _place in ("table", "slider", "drawer"):
        EXPERTS[f"lift_{_color}_block_{_place}"] = partial(lift, color=_color)
    for _side, _sign in (("left", 1.0), ("right", -1.0)):
        EXPERTS[f"rotate_{_color}_block_{_side}"] = partial(rotate, color=_color, sign=_sign)
        EXPERTS[f"push_{_color}_block_{_side}"] = partial(push, color=_color, sign=-_sign)


class Expert:
    """All experts as one policy: reads the true state and the instruction (or a task's name), plans one step at a time."""

    history = False

    def __init__(self) -> None:
        self.spec = Spec(
            state=STATE_ENTRIES,
            action=ACTION_ENTRIES,
            environment_state=SCENE_ENTRIES,
            action_kind="relative_pose",
            control_hz=float(CONTROL_HZ),
            frame=FRAME,
        )

    def begin(self, seeds: Sequence[int]) -> Memory:
        return None

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Actions (N, 1, 7)."""
        actions = [
            steer(view, EXPERTS[task if task in EXPERTS else task_of(task)](view))
            for task, view in zip(observation[TASK], views(observation), strict=True)
        ]
        return np.stack(actions)[:, None], memory

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        return memory


def views(observation: Observation) -> list[View]:
    """The true state of each world."""
    rows = zip(observation[STATE], observation[ENVIRONMENT_STATE], observation[SCENE], strict=True)
    return [View(robot.astype(float), scene.astype(float), L.LAYOUTS[L.SCENES[int(index)]]) for robot, scene, index in rows]
