"""The Panda's kinematics: forward, Jacobian and one damped least-squares inverse with limits, compiled with numba.

Everything is in SI units. Orientations are rotation matrices, or extrinsic xyz Euler angles (roll, pitch, yaw with
R = Rz(yaw) Ry(pitch) Rx(roll), Bullet's convention). The base stands at `base` without rotation.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Joint limits to which inverse kinematics clips (CALVIN's robot configuration), radians.
JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
# Per joint: the fixed translation to its frame and the fixed rotation about x (modified Denavit-Hartenberg, Franka).
OFFSETS = np.array(
    [[0, 0, 0.333], [0, 0, 0], [0, -0.316, 0], [0.0825, 0, 0], [-0.0825, 0.384, 0], [0, 0, 0], [0.088, 0, 0]], dtype=np.float64
)
TILTS = np.array([0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2])
FLANGE = 0.107
HAND_YAW = -np.pi / 4
TCP = 0.14
"""Distance of the tool centre point from the hand frame along the hand's z: CALVIN's longer fingers."""


@njit(cache=True, nogil=True)
def euler_to_matrix(euler):
    """(3,) extrinsic xyz Euler angles -> (3, 3) rotation."""
    cr, sr = np.cos(euler[0]), np.sin(euler[0])
    cp, sp = np.cos(euler[1]), np.sin(euler[1])
    cy, sy = np.cos(euler[2]), np.sin(euler[2])
    m = np.empty((3, 3))
    m[0, 0], m[0, 1], m[0, 2] = cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr
    m[1, 0], m[1, 1], m[1, 2] = sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr
    m[2, 0], m[2, 1], m[2, 2] = -sp, cp * sr, cp * cr
    return m


@njit(cache=True, nogil=True)
def matrix_to_euler(m):
    """(3, 3) rotation -> (3,) extrinsic xyz Euler angles in (-pi, pi], pitch in [-pi/2, pi/2]."""
    euler = np.empty(3)
    euler[0] = np.arctan2(m[2, 1], m[2, 2])
    euler[1] = -np.arcsin(min(1.0, max(-1.0, m[2, 0])))
    euler[2] = np.arctan2(m[1, 0], m[0, 0])
    return euler


@njit(cache=True, nogil=True)
def quaternion_to_euler(q):
    """(4,) quaternion wxyz -> (3,) extrinsic xyz Euler angles."""
    w, x, y, z = q[0], q[1], q[2], q[3]
    euler = np.empty(3)
    euler[0] = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    euler[1] = np.arcsin(min(1.0, max(-1.0, 2 * (w * y - z * x))))
    euler[2] = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return euler


@njit(cache=True, nogil=True)
def euler_to_quaternion(e):
    """(3,) extrinsic xyz Euler angles -> (4,) quaternion wxyz."""
    cr, sr = np.cos(e[0] / 2), np.sin(e[0] / 2)
    cp, sp = np.cos(e[1] / 2), np.sin(e[1] / 2)
    cy, sy = np.cos(e[2] / 2), np.sin(e[2] / 2)
    q = np.empty(4)
    q[0] = cr * cp * cy + sr * sp * sy
    q[1] = sr * cp * cy - cr * sp * sy
    q[2] = cr * sp * cy + sr * cp * sy
    q[3] = cr * cp * sy - sr * sp * cy
    return q


@njit(cache=True, nogil=True)
def forward(joints, base):
    """TCP position (3,), rotation (3, 3) and geometric Jacobian (6, 7) of seven joint angles."""
    rotation = np.eye(3)
    position = base.copy()
    axes, origins = np.empty((7, 3)), np.empty((7, 3))
    for i in range(7):
        position = position + rotation @ OFFSETS[i]
        ct, st = np.cos(TILTS[i]), np.sin(TILTS[i])
        tilt = np.array([[1.0, 0.0, 0.0], [0.0, ct, -st], [0.0, st, ct]])
        rotation = rotation @ tilt
        axes[i], origins[i] = rotation[:, 2], position
        cj, sj = np.cos(joints[i]), np.sin(joints[i])
        rotation = rotation @ np.array([[cj, -sj, 0.0], [sj, cj, 0.0], [0.0, 0.0, 1.0]])
    position = position + rotation[:, 2] * (FLANGE + TCP)
    ch, sh = np.cos(HAND_YAW), np.sin(HAND_YAW)
    rotation = rotation @ np.array([[ch, -sh, 0.0], [sh, ch, 0.0], [0.0, 0.0, 1.0]])
    jacobian = np.empty((6, 7))
    for i in range(7):
        arm = position - origins[i]
        a = axes[i]
        jacobian[0, i] = a[1] * arm[2] - a[2] * arm[1]
        jacobian[1, i] = a[2] * arm[0] - a[0] * arm[2]
        jacobian[2, i] = a[0] * arm[1] - a[1] * arm[0]
        jacobian[3:, i] = a
    return position, rotation, jacobian


@njit(cache=True, nogil=True)
def rotation_error(target, current):
    """(3,) world-frame rotation vector that turns `current` into `target`, magnitude in [0, pi]."""
    r = target @ current.T
    w = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / 2
    s = np.sqrt(w[0] ** 2 + w[1] ** 2 + w[2] ** 2)
    angle = np.arctan2(s, (r[0, 0] + r[1, 1] + r[2, 2] - 1) / 2)
    return w if s < 1e-9 else w * (angle / s)


@njit(cache=True, nogil=True)
def inverse(joints, target_position, target_rotation, base, rest, iterations, damping, posture):
    """Joint angles (7,) within the limits whose TCP is as near to the target pose as `iterations` steps bring it.

    Damped least squares from `joints`, with a pull towards `rest` in the null space (gain `posture`). Unreachable targets
    give the nearest pose found, never an error.
    """
    q = joints.copy()
    error = np.empty(6)
    for _ in range(iterations):
        position, rotation, jacobian = forward(q, base)
        error[:3] = target_position - position
        error[3:] = rotation_error(target_rotation, rotation)
        gram = jacobian @ jacobian.T
        for i in range(6):
            gram[i, i] += damping
        pull = posture * (rest - q)
        step = pull + jacobian.T @ np.linalg.solve(gram, error - jacobian @ pull)
        for i in range(7):
            q[i] = min(JOINT_HIGH[i], max(JOINT_LOW[i], q[i] + min(0.3, max(-0.3, step[i]))))
    return q
