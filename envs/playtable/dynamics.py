"""What happens around the physics in one control step, for N worlds at once, compiled with numba.

A world's own memory beyond MuJoCo's lies in its 11 `userdata` numbers, so that MuJoCo's state vector is the whole world:
target TCP position (0-2, metres) and Euler angles (3-5, radians), last gripper command (6, +1 open or -1 closed),
light bulb (7), LED (8), whether the switch counted as on (9) and the button as pressed (10) after the last step.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from envs.playtable.kinematics import (
    euler_to_matrix,
    euler_to_quaternion,
    forward,
    inverse,
    matrix_to_euler,
    quaternion_to_euler,
)
from envs.playtable.layout import BUTTON_THRESHOLD, SWITCH_THRESHOLD

POSITION_STEP = 0.02
"""Metres per unit of a translation action (CALVIN)."""
ROTATION_STEP = 0.05
"""Radians per unit of a rotation action (CALVIN)."""
FINGER_OPEN = 0.04
GRIPPER, BULB, LED, SWITCH_ON, PRESSED = 6, 7, 8, 9, 10
CONTROLS, ARM, FINGERS, BLOCKS = 0, 4, 11, 13
"""Where the table's four joints, the arm, the fingers and the blocks begin in qpos (and the first three in qvel)."""


@njit(cache=True, nogil=True)
def _wrap(angle):
    return angle - 2 * np.pi * np.ceil((angle - np.pi) / (2 * np.pi))


@njit(cache=True, nogil=True)
def command(actions, qpos, userdata, ctrl, base, rest, leash):
    """Relative actions (N, 7) -> servo targets, written into `ctrl` (N, 9); the stored target pose moves along.

    The target may lead the measured pose by at most leash[0] metres an axis and leash[1] radians an angle; infinite values
    give the original's unbounded wind-up. Euler angles are added, not composed, as in the original.
    """
    for n in range(actions.shape[0]):
        memory = userdata[n]
        joints = qpos[n, ARM : ARM + 7]
        position, rotation, _ = forward(joints, base)
        euler = matrix_to_euler(rotation)
        for i in range(3):
            lead = memory[i] + actions[n, i] * POSITION_STEP - position[i]
            memory[i] = position[i] + min(leash[0], max(-leash[0], lead))
            turn = _wrap(memory[3 + i] + actions[n, 3 + i] * ROTATION_STEP - euler[i])
            memory[3 + i] = _wrap(euler[i] + min(leash[1], max(-leash[1], turn)))
        memory[GRIPPER] = 1.0 if actions[n, 6] > 0 else -1.0
        ctrl[n, :7] = inverse(joints, memory[:3], euler_to_matrix(memory[3:6]), base, rest, 3, 1e-4, 0.01)
        ctrl[n, 7:9] = FINGER_OPEN if memory[GRIPPER] > 0 else 0.0


@njit(cache=True, nogil=True)
def latch(qpos, userdata):
    """Lamp logic, once per control step: the button toggles the LED on a rising edge, the switch sets the bulb on a change."""
    for n in range(qpos.shape[0]):
        memory = userdata[n]
        pressed = 1.0 if qpos[n, 2] > BUTTON_THRESHOLD else 0.0
        if pressed > memory[PRESSED]:
            memory[LED] = 1.0 - memory[LED]
        memory[PRESSED] = pressed
        on = 1.0 if qpos[n, 3] > SWITCH_THRESHOLD else 0.0
        if on != memory[SWITCH_ON]:
            memory[BULB] = on
        memory[SWITCH_ON] = on


@njit(cache=True, nogil=True)
def observe(qpos, userdata, base, orders, robot_obs, scene_obs):
    """Fill robot_obs (N, 15) and scene_obs (N, 24) with CALVIN's meaning; `orders` (N, 3) are block indices in scene order."""
    for n in range(qpos.shape[0]):
        position, rotation, _ = forward(qpos[n, ARM : ARM + 7], base)
        robot_obs[n, :3] = position
        robot_obs[n, 3:6] = matrix_to_euler(rotation)
        robot_obs[n, 6] = qpos[n, FINGERS] + qpos[n, FINGERS + 1]
        robot_obs[n, 7:14] = qpos[n, ARM : ARM + 7]
        robot_obs[n, 14] = userdata[n, GRIPPER]
        scene_obs[n, :4] = qpos[n, :4]
        scene_obs[n, 4] = userdata[n, BULB]
        scene_obs[n, 5] = userdata[n, LED]
        for i in range(3):
            start = BLOCKS + 7 * orders[n, i]
            scene_obs[n, 6 + 6 * i : 9 + 6 * i] = qpos[n, start : start + 3]
            scene_obs[n, 9 + 6 * i : 12 + 6 * i] = quaternion_to_euler(qpos[n, start + 3 : start + 7])


@njit(cache=True, nogil=True)
def place(robot_obs, scene_obs, base, orders, rows, qpos, userdata, ctrl):
    """Put the worlds `rows` at the given robot_obs (M, 15) and scene_obs (M, 24); the TCP entries are ignored, as in CALVIN."""
    for m in range(rows.shape[0]):
        n = rows[m]
        qpos[n, :4] = scene_obs[m, :4]
        qpos[n, ARM : ARM + 7] = robot_obs[m, 7:14]
        qpos[n, FINGERS : FINGERS + 2] = robot_obs[m, 6] / 2
        for i in range(3):
            start = BLOCKS + 7 * orders[n, i]
            qpos[n, start : start + 3] = scene_obs[m, 6 + 6 * i : 9 + 6 * i]
            qpos[n, start + 3 : start + 7] = euler_to_quaternion(scene_obs[m, 9 + 6 * i : 12 + 6 * i])
        position, rotation, _ = forward(robot_obs[m, 7:14], base)
        userdata[n, :3] = position
        userdata[n, 3:6] = matrix_to_euler(rotation)
        userdata[n, GRIPPER] = 1.0 if robot_obs[m, 14] > 0 else -1.0
        userdata[n, BULB] = 1.0 if scene_obs[m, 4] > 0.5 else 0.0
        userdata[n, LED] = 1.0 if scene_obs[m, 5] > 0.5 else 0.0
        userdata[n, SWITCH_ON] = 0.0
        userdata[n, PRESSED] = 0.0
        ctrl[n, :7] = robot_obs[m, 7:14]
        ctrl[n, 7:9] = FINGER_OPEN if userdata[n, GRIPPER] > 0 else 0.0


@njit(cache=True, nogil=True)
def touching(geoms, distances, parts, count, reach):
    """(count,) bit masks: bit j of entry i is set if parts i and j are nearer than `reach` metres."""
    masks = np.zeros(count, dtype=np.int64)
    for c in range(geoms.shape[0]):
        if distances[c] < reach:
            a, b = parts[geoms[c, 0]], parts[geoms[c, 1]]
            masks[a] |= 1 << b
            masks[b] |= 1 << a
    return masks
