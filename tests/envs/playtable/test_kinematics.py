"""The arm's kinematics against MuJoCo's, against finite differences, and inverted."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from envs.playtable import layout as L
from envs.playtable import scene as S
from envs.playtable.kinematics import (
    JOINT_HIGH,
    JOINT_LOW,
    euler_to_matrix,
    euler_to_quaternion,
    forward,
    inverse,
    matrix_to_euler,
    quaternion_to_euler,
    rotation_error,
)

BASE, REST = np.array(L.ROBOT_BASE), np.array(L.HOME_JOINTS)
shares = arrays(float, 7, elements=st.floats(0, 1))
"""Joint angles as shares of their ranges."""
angles = arrays(float, 3, elements=st.floats(-3.1, 3.1))
points = arrays(float, 3, elements=st.floats(-3, 3))


@pytest.fixture(scope="module")
def simulated():
    model = S.build("D")
    return model, mujoco.MjData(model)


def joints_of(share):
    return JOINT_LOW + share * (JOINT_HIGH - JOINT_LOW)


@given(share=shares)
def test_forward_is_mujocos(simulated, share):
    model, data = simulated
    joints = joints_of(share)
    data.qpos[[model.joint(name).qposadr[0] for name in S.ARM_JOINTS]] = joints
    mujoco.mj_kinematics(model, data)
    position, rotation, _ = forward(joints, BASE)
    np.testing.assert_allclose(position, data.site("tcp").xpos, atol=1e-12)
    np.testing.assert_allclose(rotation.ravel(), data.site("tcp").xmat, atol=1e-12)


@given(share=shares)
def test_the_jacobian_is_the_derivative(share):
    joints, step = joints_of(share), 1e-6
    _, _, jacobian = forward(joints, BASE)
    for i in range(7):
        nudge = step * np.eye(7)[i]
        ahead, behind = forward(joints + nudge, BASE), forward(joints - nudge, BASE)
        np.testing.assert_allclose((ahead[0] - behind[0]) / (2 * step), jacobian[:3, i], atol=1e-8)
        np.testing.assert_allclose(rotation_error(ahead[1], behind[1]) / (2 * step), jacobian[3:, i], atol=1e-8)


@given(turn=arrays(float, 7, elements=st.floats(-0.5, 0.5)))
def test_the_inverse_reaches_poses_that_can_be_reached(turn):
    """From the home pose to where the arm is with every joint turned by up to half a radian."""
    target, rotation, _ = forward(np.clip(REST + turn, JOINT_LOW, JOINT_HIGH), BASE)
    joints = inverse(REST, target, rotation, BASE, REST, 40, 1e-4, 0.01)
    position, reached, _ = forward(joints, BASE)
    np.testing.assert_allclose(position, target, atol=1e-3)
    assert np.linalg.norm(rotation_error(rotation, reached)) < 5e-3


@given(share=shares, target=points, euler=angles, iterations=st.integers(1, 20))
def test_any_target_gives_joints_within_the_limits(share, target, euler, iterations):
    """Unreachable ones included: `points` lie up to 5 m away."""
    joints = inverse(joints_of(share), target, euler_to_matrix(euler), BASE, REST, iterations, 1e-4, 0.01)
    assert (joints >= JOINT_LOW).all()  # false for NaN, too
    assert (joints <= JOINT_HIGH).all()


@given(direction=points.filter(lambda v: np.linalg.norm(v) > 0.1))
def test_an_unreachable_target_stretches_the_arm_towards_it(direction):
    target = BASE + [0, 0, 0.333] + 3 * direction / np.linalg.norm(direction)
    _, rotation, _ = forward(REST, BASE)
    joints = inverse(REST, target, rotation, BASE, REST, 3, 1e-4, 0.01)
    assert np.isfinite(joints).all()
    assert np.abs(joints - REST).max() <= 3 * 0.3 + 1e-9, "one iteration turns a joint by 0.3 rad at most"


@given(euler=angles)
def test_euler_angles_survive_matrix_and_quaternion(euler):
    matrix = euler_to_matrix(euler)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) > 0
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-7)
    quaternion = euler_to_quaternion(euler)
    other = np.empty(9)
    mujoco.mju_quat2Mat(other, quaternion)
    np.testing.assert_allclose(other.reshape(3, 3), matrix, atol=1e-12)
    np.testing.assert_allclose(euler_to_matrix(quaternion_to_euler(quaternion)), matrix, atol=1e-7)


@given(roll=st.floats(-3.1, 3.1), pitch=st.floats(-1.5, 1.5), yaw=st.floats(-3.1, 3.1))
def test_euler_angles_in_range_come_back_as_they_were(roll, pitch, yaw):
    euler = np.array([roll, pitch, yaw])
    np.testing.assert_allclose(matrix_to_euler(euler_to_matrix(euler)), euler, atol=1e-9)
    np.testing.assert_allclose(quaternion_to_euler(euler_to_quaternion(euler)), euler, atol=1e-9)


@given(axis=angles.filter(lambda v: 0.1 < np.linalg.norm(v) < 3.1), euler=angles)
@settings(max_examples=50)
def test_the_rotation_error_turns_one_into_the_other(axis, euler):
    current = euler_to_matrix(euler)
    turn, quaternion = np.empty(9), np.empty(4)
    mujoco.mju_axisAngle2Quat(quaternion, axis / np.linalg.norm(axis), float(np.linalg.norm(axis)))
    mujoco.mju_quat2Mat(turn, quaternion)
    np.testing.assert_allclose(rotation_error(turn.reshape(3, 3) @ current, current), axis, atol=1e-6)
