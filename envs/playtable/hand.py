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
DEEP_LEAN = -0.65
"""Beside the cabinet's right wall: the wide palm then stays clear of the slanted front next to the opening."""
TRAVEL = 0.52
"""Least height of the TCP between places, metres."""
LANE = -0.07
"""Nothing of the cabinet's front reaches out to this y."""
PALM, FINGER = 0.105, 0.065
"""Half of what the palm and the open fingers take along x: a block's distance from door and left wall, and from the right."""
ABOVE = np.array([0.0, 0.0, 0.065])
BESIDE_TABLE = np.array([0.0, 0.0, 0.15])
INTO_CABINET = np.array([0.0, -0.10, 0.08])
IN_FRONT = np.array([0.0, -0.10, 0.0])
"""Ways in: from above, from above into the drawer, over the sill into the cabinet, straight at the cabinet's front."""
GAIN = 0.5
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

    def grasp(self, preferred: float, obstacles: Sequence[np.ndarray] = ()) -> tuple[float, float]:
        """Yaw, nearest to the preferred one, at which the fingers close over an edge that fits; and that edge's length.

        An obstacle (position) where a finger would go down counts as much as a large turn.
        """
        best = (np.inf, preferred, 0.04)
        for axis in range(3):
            if axis == self.upright or self.size[axis] > 0.06:
                continue
            yaw = np.arctan2(self.axes[0, axis], -self.axes[1, axis])
            yaw = preferred + wrap_half(yaw - preferred)
            cost = abs(yaw - preferred) + 40 * (self.size[axis] - 0.04)
            for side in (-1, 1):
                finger = self.position + side * (self.size[axis] / 2 + 0.025) * self.axes[:, axis]
                cost += 3.0 * any(np.hypot(*(place - finger)[:2]) < 0.045 for place in obstacles)
            best = min(best, (cost, yaw, self.size[axis]))
        return best[1], best[2]

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

    def between(self, block: BlockView) -> bool:
        """Whether the TCP is inside the block's grasp zone."""
        offset = block.position - self.tcp
        return bool(np.hypot(offset[0], offset[1]) < 0.022 and abs(offset[2]) < 0.018)

    @property
    def held(self) -> str | None:
        """The colour of the block that the closed fingers hold."""
        if not self.closing or not 0.03 < self.width < 0.065:
            return None
        return next((color for color, block in self.blocks.items() if self.between(block)), None)

    def near_block(self, distance: float) -> bool:
        """Whether the fingers reach down around or beside a block."""
        offsets = np.array([block.position for block in self.blocks.values()]) - self.tcp
        return bool((np.hypot(offsets[:, 0], offsets[:, 1]) < distance)[np.abs(offsets[:, 2]) < 0.03].any())

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
    # Turning sweeps the fingers sideways: stay out until the yaw is nearly right.
    turn = abs(wrap(yaw - view.euler[2]))
    steepness = 6.0 if entry[1] == 0 else 10.0
    out = min(depth, max(steepness * max(0.0, beside - 0.006), 0.2 * max(0.0, turn - 0.12)))
    waypoint = target + axis * out
    across = abs(offset[0])
    travel = max(target[2] + entry[2], TRAVEL)
    leaving = view.near_block(0.05) and not carrying
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
    if position[1] < -0.08:
        return 0.0
    return DEEP_LEAN if position[1] > 0.02 and position[0] + PALM > view.layout.cabinet[1] else LEAN


def grasp(view: View, color: str, preferred: float = FORWARD) -> Move | None:
    """On the way to holding a block; None once it is held."""
    block = view.blocks[color]
    beside = [b.position for b in view.blocks.values() if b is not block] + [view.button_place]
    yaw, edge = block.grasp(preferred, [p for p in beside if abs(p[2] - block.position[2]) < 0.02])
    pitch = lean(view, block.position)
    entry = INTO_CABINET if in_cabinet(block) else ABOVE if block.position[2] > L.TABLE_TOP else BESIDE_TABLE
    target = block.position.copy()
    if view.between(block) and view.closing and view.width > edge - 0.012:
        gripped = np.abs(view.width - block.size).min() < 0.004
        return None if gripped else Move(view.tcp, CLOSE, view.euler[2], view.euler[1])
    turned = abs(wrap(yaw - view.euler[2])) < 0.12 and abs(pitch - view.euler[1]) < 0.12
    if not view.pinching and view.width > 0.07 and turned and at(view, target, (0.009, 0.012, 0.012)):
        return Move(view.tcp, CLOSE, yaw, pitch)
    return approach(view, target, OPEN, yaw, pitch, entry)
