"""What the scripted experts share: the true state in their words, and ways of moving the hand.

Everything is a function of the instant: geometry and finger width, no timers. Angles: the hand points down at roll pi, pitch
0; its fingers close along (sin yaw, -cos yaw), which at yaw pi/2 is the world's x; a negative pitch leans the hand back so
that the fingers point forward, as the slanted cabinet front asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from envs.playtable import layout as L
from envs.playtable.dynamics import POSITION_STEP, ROTATION_STEP
from envs.playtable.kinematics import euler_to_matrix

OPEN, CLOSE = 1.0, -1.0
FORWARD = np.pi / 2
"""Yaw at which the fingers close along x."""
LEAN = -0.35
DEEP_LEAN = -0.75
"""Beside a wall of the cabinet or its door: the wide palm then stays in front of the slanted surface next to the opening."""
TRAVEL = 0.52
"""Least height of the TCP between places, metres."""
LANE = -0.07
"""Nothing of the cabinet's front reaches out to this y."""
FINGER_AT, FINGER_RADIUS = 0.051, 0.018
"""How far the middle of an open finger is from the TCP, and what it takes around it."""
PALM, FINGER, EASE = 0.105, 0.065, 0.04
"""Half of what the palm and the open fingers take along x: nearer than PALM to a side of the cabinet's opening the hand leans
deeper, by and by over EASE metres, nearer than FINGER it does not get in."""
SLOPE = np.array([0.0, np.cos(L.SLOPE_ANGLE), np.sin(L.SLOPE_ANGLE)])
NORMAL = np.array([0.0, -np.sin(L.SLOPE_ANGLE), np.cos(L.SLOPE_ANGLE)])
"""Directions along the cabinet's slanted front, upwards, and out of it."""
ABOVE = np.array([0.0, 0.0, 0.065])
BESIDE_TABLE = np.array([0.0, 0.0, 0.15])
INTO_CABINET = np.array([0.0, -0.10, 0.08])
IN_FRONT = np.array([0.0, -0.10, 0.0])
"""Ways in: from above, from above into the drawer, over the sill into the cabinet, straight at the cabinet's front."""
GAIN = 0.3
"""Share of the remaining error asked for per step: the command integrates and the servo lags, so 1 would overshoot."""


@dataclass(frozen=True)
class Move:
    """A waypoint: TCP position (3,) in metres, yaw and pitch in radians, gripper command."""

    position: np.ndarray
    grip: float
    yaw: float = FORWARD
    pitch: float = 0.0


@dataclass(frozen=True)
class BlockView:
    """A block's centre, its three axes (columns) and its edge lengths."""

    position: np.ndarray
    axes: np.ndarray
    size: np.ndarray

    @cached_property
    def upright(self) -> int:
        """Which local axis is vertical."""
        return int(np.abs(self.axes[2]).argmax())

    @cached_property
    def height(self) -> float:
        return float(self.size[self.upright])

    def grasps(self, preferred: float, reluctance: float) -> list[tuple[float, float, float, np.ndarray]]:
        """Ways to take it: what a way costs (`reluctance` per radian of turn from the preferred yaw), its yaw, the length of
        the edge that the fingers close over, and the direction in which they close."""
        ways = []
        for axis in range(3):
            if axis == self.upright or self.size[axis] > 0.06:
                continue
            yaw = preferred + wrap_half(np.arctan2(self.axes[0, axis], -self.axes[1, axis]) - preferred)
            cost = reluctance * abs(yaw - preferred) + 40 * (self.size[axis] - 0.04)
            ways.append((cost, yaw, float(self.size[axis]), self.axes[:, axis] * [1, 1, 0]))
        return ways

    def distance(self, point: np.ndarray) -> float:
        """Of its side faces from a point at its height."""
        local = (point - self.position) @ self.axes
        local[self.upright] = 0
        return float(np.linalg.norm(np.maximum(np.abs(local) - self.size / 2, 0)))

    def reach(self, direction: np.ndarray) -> float:
        """Half of its extent along a horizontal direction."""
        return float(np.abs(direction @ self.axes) @ self.size / 2)


class View:
    """One world's true state in the words of the experts."""

    def __init__(self, robot_obs: np.ndarray, scene_obs: np.ndarray, layout: L.Layout) -> None:
        self.layout = layout
        self.tcp = robot_obs[:3]
        self.euler = robot_obs[3:6]
        self.width = float(robot_obs[6])
        self.closing = robot_obs[14] < 0
        self.slider, self.drawer, self.button, self.switch = scene_obs[:4]
        self.led = scene_obs[5] > 0.5
        self.blocks = {
            color: BlockView(
                scene_obs[6 + 6 * i : 9 + 6 * i],
                euler_to_matrix(scene_obs[9 + 6 * i : 12 + 6 * i]),
                np.array(layout.block_size(color)),
            )
            for i, color in enumerate(layout.block_order)
        }

    @property
    def button_place(self) -> np.ndarray:
        """Where the button stands up from the table."""
        return np.array([self.layout.button_x, self.layout.button_y, L.TABLE_TOP + 0.02])

    @property
    def lever(self) -> np.ndarray:
        """Where the lever's frame is: in the slanted front, below the lever."""
        return np.array([self.layout.switch_x, *L.SWITCH_POINT]) + SLOPE * self.switch

    @property
    def under_lever(self) -> bool:
        """Whether the fingers are where they would take the lever along on their way up."""
        offset = self.tcp - self.lever
        return bool(abs(offset[0]) < 0.09 and offset @ NORMAL < 0.085 and offset @ SLOPE < 0.03 and self.tcp[1] > LANE)

    def between(self, block: BlockView) -> bool:
        """Whether the TCP is inside the block's grasp zone."""
        offset = block.position - self.tcp
        return bool(np.hypot(offset[0], offset[1]) < 0.022 and abs(offset[2]) < 0.018)

    def crowding(self, block: BlockView, across: np.ndarray) -> np.ndarray:
        """Horizontally away from all that stands where open fingers would come down beside a block; zeros if nothing does."""
        low, high = self._walls(block)
        away = np.zeros(3)
        for finger in (block.position + FINGER_AT * across, block.position - FINGER_AT * across):
            things = [(b.position, b.distance(finger)) for b in self.blocks.values() if b is not block]
            things.append((self.button_place, float(np.hypot(*(self.button_place - finger)[:2])) - 0.032))
            for place, distance in things:
                apart = block.position - place
                if distance < FINGER_RADIUS and abs(apart[2]) < 0.03:
                    away[:2] += apart[:2] / np.linalg.norm(apart[:2])
            away[:2] += (finger[:2] - low < FINGER_RADIUS) * 1.0 - (high - finger[:2] < FINGER_RADIUS)
        return away

    def _walls(self, block: BlockView) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest x and y of the room that a block is in: the drawer as far as it is out, the cabinet, or none."""
        if block.position[2] < L.TABLE_TOP:
            middle = self.layout.drawer_x
            return np.array([middle - 0.176, -0.156 - self.drawer]), np.array([middle + 0.176, -0.18])
        if in_cabinet(block):
            return np.array([self.layout.cabinet[0], -np.inf]), np.array([self.layout.cabinet[1], 0.16])
        return np.full(2, -np.inf), np.full(2, np.inf)

    @property
    def held(self) -> str | None:
        """The colour of the block that the closed fingers hold."""
        if not self.closing or not 0.03 < self.width < 0.065:
            return None
        return next((color for color, block in self.blocks.items() if self.between(block)), None)

    def near_block(self, distance: float) -> bool:
        """Whether the fingers reach down around or beside a block."""
        offsets = np.array([block.position for block in self.blocks.values()]) - self.tcp
        level = (offsets[:, 2] > -0.055) & (offsets[:, 2] < 0.03)
        return bool((np.hypot(offsets[:, 0], offsets[:, 1]) < distance)[level].any())

    @property
    def straddled_x(self) -> float:
        """x of the lever or door handle that the fingers are around, else the hand's own."""
        handle = self.layout.door_left + L.DOOR_WIDTH / 2 - self.slider
        return next((x for x in (self.layout.switch_x, handle) if abs(x - self.tcp[0]) < 0.045), float(self.tcp[0]))

    @property
    def pinching(self) -> bool:
        """Whether something is between the closed fingers."""
        return bool(self.closing and 0.022 < self.width < 0.07)


def wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def wrap_half(angle: float) -> float:
    """To [-pi/2, pi/2): the hand is the same after half a turn."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)


def steer(view: View, move: Move) -> np.ndarray:
    """The action (7,) that brings the hand towards a waypoint, each axis as fast as it can."""
    shift = GAIN * (move.position - view.tcp) / POSITION_STEP
    target = np.array([np.pi, move.pitch, move.yaw])
    turn = GAIN * np.array([wrap(a) for a in target - view.euler]) / ROTATION_STEP
    return np.array([*np.clip(shift, -1, 1), *np.clip(turn, -1, 1), move.grip], dtype=np.float32)


def approach(
    view: View,
    target: np.ndarray,
    grip: float,
    yaw: float = FORWARD,
    pitch: float = 0.0,
    entry: np.ndarray = ABOVE,
    carrying: bool = False,
) -> Move:
    """To a target through a funnel whose mouth lies at target + entry, touching nothing on the way.

    Let go of what is between the fingers, rise, back away from the cabinet front, travel in front of it, go in.
    """
    if not carrying and (view.pinching or (view.near_block(0.025) and view.width < 0.06 and not view.closing)):
        return release(view)
    depth = float(np.linalg.norm(entry))
    axis = entry / depth
    offset = view.tcp - target
    along = float(offset @ axis)
    beside = float(np.linalg.norm(offset - along * axis))
    if view.under_lever and beside > 0.03:
        return Move(np.array([view.tcp[0], LANE - 0.01, view.tcp[2]]), grip, view.euler[2], view.euler[1])
    # Turning sweeps the fingers sideways: stay out until the yaw is nearly right.
    turn = abs(wrap(yaw - view.euler[2]))
    steepness = 6.0 if entry[1] == 0 else 10.0
    shut = 0.05 * (grip == OPEN and view.width < 0.07)  # fingers open before they go down around something
    out = min(depth, max(steepness * max(0.0, beside - 0.006), 0.2 * max(0.0, turn - 0.12), shut))
    waypoint = target + axis * out
    across = abs(offset[0])
    travel = max(target[2] + entry[2], TRAVEL)
    leaving = view.near_block(0.07) and not carrying
    if beside > 0.03 and (leaving or view.tcp[2] < travel - 0.03):
        keep = grip if carrying else CLOSE if view.closing else OPEN
        turning = view.tcp[2] > L.TABLE_TOP + 0.05 and view.tcp[1] < LANE
        euler = (yaw, pitch) if turning else (view.euler[2], view.euler[1])
        return Move(np.array([*view.tcp[:2], max(view.tcp[2] + 0.03, travel + 0.01)]), keep, *euler)
    if across > (0.04 if view.tcp[1] > LANE + 0.02 else 0.015) and max(view.tcp[1], waypoint[1]) > LANE:
        if view.tcp[1] > LANE + 0.02:
            waypoint = np.array([view.straddled_x, LANE - 0.01, max(view.tcp[2], travel - 0.02)])
            keep = OPEN if not view.closing and not carrying else grip
            return Move(waypoint, keep, view.euler[2], view.euler[1])
        waypoint = np.array([target[0], LANE - 0.01, travel])
    return Move(waypoint, grip, yaw, pitch)


def release(view: View) -> Move:
    """Open where the hand is, a little upwards: fingertips pressed onto the table would not slide apart."""
    return Move(view.tcp + [0.0, 0.0, 0.006], OPEN, view.euler[2], view.euler[1])


def at(view: View, target: np.ndarray, tolerance: Sequence[float]) -> bool:
    """Whether the TCP is within (x, y, z) tolerances of a target."""
    return bool((np.abs(view.tcp - target) < tolerance).all())


def in_cabinet(block: BlockView) -> bool:
    return bool(block.position[1] > 0.02 and block.position[2] > L.TABLE_TOP)


def lean(view: View, position: np.ndarray) -> float:
    """The pitch at which the palm stays clear of the cabinet when the hand is at a position."""
    beside_lever = abs(position[0] - view.layout.switch_x) < 0.1 and position[1] > -0.12
    if position[1] < -0.08 and not beside_lever:
        return 0.0
    door = view.layout.door_left - view.slider
    beside = np.abs(np.array([*view.layout.cabinet, door, door + L.DOOR_WIDTH]) - position[0]).min()
    narrow = np.clip(1 + (PALM - beside) / EASE, 0.0, 1.0) if position[1] > 0.02 else 0.0
    return float(LEAN + (DEEP_LEAN - LEAN) * narrow)


def grasp(view: View, color: str, preferred: float = FORWARD) -> Move | None:
    """On the way to holding a block; None once it is held. One that stands too near to something else is moved first."""
    block = view.blocks[color]
    pitch = lean(view, block.position)
    target = block.position.copy()
    ways = []
    for cost, yaw, edge, across in block.grasps(preferred, 5 if pitch else 1):  # a hand that leans turns in no room
        away = view.crowding(block, across)
        ways.append((cost + 3 * bool(away.any()), yaw, edge, away))
    _, yaw, edge, away = min(ways, key=lambda way: way[0])
    entry = INTO_CABINET if in_cabinet(block) else ABOVE if block.position[2] > L.TABLE_TOP else BESIDE_TABLE
    if view.between(block) and view.closing and view.width > edge - 0.012:
        gripped = np.abs(view.width - block.size).min() < 0.004
        return None if gripped else Move(view.tcp, CLOSE, view.euler[2], view.euler[1])
    turned = abs(wrap(yaw - view.euler[2])) < 0.12 and abs(pitch - view.euler[1]) < 0.12
    if not view.pinching and view.width > 0.07 and turned and at(view, target, (0.009, 0.012, 0.015)):
        return Move(view.tcp, CLOSE, yaw, pitch)
    if away.any():
        return drag(view, block, away, yaw, pitch, entry)
    return approach(view, target, OPEN, yaw, pitch, entry)


def drag(view: View, block: BlockView, direction: np.ndarray, yaw: float, pitch: float, entry: np.ndarray) -> Move:
    """Shift a block along a horizontal direction with closed fingertips on top of it."""
    direction = direction / np.linalg.norm(direction)
    tip = 0.012 * np.cos(pitch) - 0.010 * np.sin(pitch)
    top = block.position + [0, 0, block.height / 2 + tip]
    if at(view, top, (0.015, 0.015, 0.004)) and view.width < 0.02:
        return Move(np.array([*(view.tcp + 0.03 * direction)[:2], top[2] - 0.003]), CLOSE, yaw, pitch)
    return approach(view, top - [0, 0, 0.003], CLOSE, yaw, pitch, entry)
