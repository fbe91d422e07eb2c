"""Builds the MuJoCo model of a scene from `layout`: table, controls, blocks, the Panda with CALVIN's longer fingers.

The four scenes have the same bodies, joints and geoms in the same order, so that worlds of different scenes share one
batch. Solver settings are those that hold a grasped block still: 240 Hz with the discrete integrator, elliptic cones,
stiff contacts on pads and blocks, and joint damping instead of servo damping (which stays implicit under force limits).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import mujoco
import numpy as np

from envs.playtable import layout as L
from envs.playtable.kinematics import FLANGE, HAND_YAW, JOINT_HIGH, JOINT_LOW, OFFSETS, TCP, TILTS
from vla.spec import UserError

PHYSICS_HZ = 240
CONTROL_HZ = 30
SUBSTEPS = PHYSICS_HZ // CONTROL_HZ
assert SUBSTEPS * CONTROL_HZ == PHYSICS_HZ

ROBOT, TABLE, BLOCK = 1, 2, 4
"""Collision groups: no group meets itself but blocks, so that parts of the table slide through each other freely."""
STIFF = [0.002, 1.0]
NO_CREEP = [0.9999, 0.9999, 0.001, 0.5, 2]
"""Friction of doors, drawer and switch: softer, a push far below it would move them by centimetres in a minute."""
TOUCH = 0.0005
"""Blocks are in contact up to this distance, metres, as Bullet reports it: sliding does not flicker. Forces begin at 0."""

ARM_JOINTS = tuple(f"panda_joint{i + 1}" for i in range(7))
FINGER_JOINTS = ("panda_finger_left", "panda_finger_right")
ARM_GAIN = (4500, 4500, 3500, 3500, 2000, 2000, 2000)
DAMPING_PER_GAIN = 0.044
"""Seconds: the arm lags behind its target as the original's does (half of a step's motion is left after the step)."""
ARM_FORCE = 600.0
"""Newton metres; the damping takes 400 of it at the original's top speed of 2 rad/s, and leaves its 200."""
LINK_MASS = (2.9, 2.7, 2.73, 2.04, 2.08, 3.0, 1.3, 0.2)
FINGER_MASS = 0.1
FINGER_GAIN, FINGER_DAMPING, FINGER_FORCE = 2000.0, 30.0, 40.0
FINGER_BASE = 0.0584
FINGERTIP = TCP + 0.012
"""Distance of the fingertips from the hand frame: 12 mm beyond the tool centre point."""

PARTS = (
    "floor", "base", "plank", "slide", "drawer", "button", "switch", "led", "light",
    "block_red", "block_blue", "block_pink", "robot",
)  # fmt: skip
"""Names used in contacts; every geom belongs to one of them."""

WHITE, GREY, DARK = (0.93, 0.93, 0.94, 1), (0.42, 0.42, 0.44, 1), (0.16, 0.16, 0.17, 1)


def _mesh_folder() -> Path:
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or not package.submodule_search_locations:
        raise UserError("package gymnasium-robotics is missing, which holds the Panda's meshes: run `uv sync`.")
    return Path(package.submodule_search_locations[0], "envs/assets/kitchen_franka/franka_assets/meshes/collision")


def _rotation_x(angle: float) -> list[float]:
    return [np.cos(angle / 2), np.sin(angle / 2), 0.0, 0.0]


def _rotation_z(angle: float) -> list[float]:
    return [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]


def _box(body, name: str, low, high, group: int, rgba=WHITE, **options) -> None:
    """A box between two corners, in the body's frame."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    collides = {ROBOT: TABLE | BLOCK, TABLE: ROBOT | BLOCK, BLOCK: ROBOT | TABLE | BLOCK}
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=(low + high) / 2,
        size=(high - low) / 2,
        contype=group,
        conaffinity=collides.get(group, 0),
        rgba=rgba,
        **options,
    )


def _prism(spec: mujoco.MjSpec, body, name: str, left: float, right: float) -> None:
    """The closed part of the cabinet beside its opening: slanted front from the table to the roof."""
    profile = [(0.0205, L.TABLE_TOP), (0.1405, 0.648), (0.18, 0.648), (0.18, L.TABLE_TOP)]
    vertices = [(x, y, z) for x in (left, right) for y, z in profile]
    spec.add_mesh(name=name, uservert=np.array(vertices, float).flatten())
    body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, contype=TABLE, conaffinity=ROBOT | BLOCK, rgba=WHITE
    )


def _sliding(body, name: str, axis, high: float, friction: float = 0.0, **options) -> None:
    body.add_joint(
        name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, range=[0, high], limited=True, frictionloss=friction,
        solimp_friction=NO_CREEP, **options,
    )  # fmt: skip


def _add_table(spec: mujoco.MjSpec, s: L.Layout) -> None:
    world = spec.worldbody
    cabinet_low, cabinet_high = s.cabinet
    base = world.add_body(name="base")
    _box(base, "base_top", (-0.44, -0.18, 0.406), (0.44, 0.18, L.TABLE_TOP), TABLE)
    for i, (x, y) in enumerate([(-0.42, -0.16), (0.42, -0.16), (-0.42, 0.16), (0.42, 0.16)]):
        _box(base, f"base_leg{i}", (x - 0.02, y - 0.02, 0), (x + 0.02, y + 0.02, 0.406), TABLE)
    _prism(spec, base, "base_left", -0.44, cabinet_low)
    _prism(spec, base, "base_right", cabinet_high, 0.44)
    _box(base, "base_back", (cabinet_low, 0.16, L.TABLE_TOP), (cabinet_high, 0.18, 0.648), TABLE)
    _box(base, "base_beam", (cabinet_low, 0.135, 0.628), (cabinet_high, 0.16, 0.648), TABLE)
    base.add_geom(
        name="base_ring", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=[s.button_x, s.button_y, 0.445], size=[0.038, 0.005, 0],
        contype=TABLE, conaffinity=ROBOT | BLOCK, rgba=GREY,
    )  # fmt: skip

    plank = world.add_body(name="plank", pos=[s.cabinet_x, 0.09, 0])
    _box(plank, "plank", (-0.26, -0.07, 0.421), (0.26, 0.07, L.PLANK_TOP), TABLE)

    slide = world.add_body(name="slide", pos=[s.door_left, *L.SLOPE_POINT], quat=_rotation_x(L.SLOPE_ANGLE), gravcomp=1)
    _sliding(slide, "base__slide", [-1, 0, 0], s.slide_range, friction=4)
    _box(slide, "slide_panel", (0, -0.11, 0), (L.DOOR_WIDTH, 0.11, 0.02), TABLE, mass=1.2)
    _box(slide, "slide_handle", (0.12, -0.08, 0.052), (0.16, 0.08, 0.08), TABLE, mass=0.2)
    for i, y in enumerate((-0.069, 0.069)):
        _box(slide, f"slide_post{i}", (0.12, y - 0.011, 0.02), (0.16, y + 0.011, 0.052), TABLE, mass=0.0715)

    drawer = world.add_body(name="drawer", pos=[s.drawer_x, 0, 0], gravcomp=1)
    _sliding(drawer, "base__drawer", [0, -1, 0], 0.22, friction=4)
    _box(drawer, "drawer_floor", (-0.22, -0.18, 0.30), (0.22, 0.04, L.DRAWER_FLOOR), TABLE, mass=2)
    _box(drawer, "drawer_front", (-0.22, -0.18, L.DRAWER_FLOOR), (0.22, -0.156, 0.402), TABLE, mass=0.6)
    _box(drawer, "drawer_back", (-0.22, 0.038, L.DRAWER_FLOOR), (0.22, 0.05, 0.402), TABLE, mass=0.4)
    _box(drawer, "drawer_left", (-0.22, -0.156, L.DRAWER_FLOOR), (-0.176, 0.038, 0.402), TABLE, mass=0.4)
    _box(drawer, "drawer_right", (0.176, -0.156, L.DRAWER_FLOOR), (0.22, 0.038, 0.402), TABLE, mass=0.4)
    _box(drawer, "drawer_handle", (-0.12, -0.26, 0.34), (0.12, -0.232, 0.38), TABLE, mass=0.3)
    for i, x in enumerate((-0.108, 0.108)):
        _box(drawer, f"drawer_post{i}", (x - 0.012, -0.232, 0.34), (x + 0.012, -0.18, 0.38), TABLE, mass=0.0655)

    button = world.add_body(name="button", pos=[s.button_x, s.button_y, 0.46], gravcomp=1)
    # 4 N at full travel and a decay by 0.45 per control step, as the original's spring-back motor.
    _sliding(button, "base__button", [0, 0, -1], 0.02, stiffness=[200, 0, 0], damping=[8, 0, 0])
    button.add_geom(
        name="button", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=[0, 0, 0.012], size=[0.032, 0.012, 0], mass=0.154,
        contype=TABLE, conaffinity=ROBOT | BLOCK, rgba=DARK,
    )  # fmt: skip

    # The frame lies 42 mm down the slope from its middle and 8 mm inside it. The lever is an arch, as a drawer's pull is: a bar
    # along x on two posts. Its geoms reach 8 mm down and 24 mm up the slope, and 64 mm out of it.
    switch = world.add_body(name="switch", pos=[s.switch_x, *L.SWITCH_POINT], quat=_rotation_x(L.SLOPE_ANGLE), gravcomp=1)
    _sliding(switch, "base__switch", [0, 1, 0], 0.088, friction=4)
    for name, low, high, mass in (
        ("switch_bar", (-0.06, -0.008, 0.042), (0.06, 0.024, 0.064), 0.119),
        ("switch_post_left", (-0.06, -0.008, 0), (-0.039, 0.024, 0.042), 0.060),
        ("switch_post_right", (0.039, -0.008, 0), (0.06, 0.024, 0.042), 0.060),
    ):
        _box(switch, name, low, high, TABLE, rgba=GREY, mass=mass)

    led = world.add_body(name="led")
    _box(led, "led", (s.led_x - 0.08, 0.14, 0.648), (s.led_x + 0.08, 0.18, 0.664), TABLE)
    light = world.add_body(name="light")
    light.add_geom(
        name="light", type=mujoco.mjtGeom.mjGEOM_ELLIPSOID, pos=[s.switch_x, s.bulb_y + 0.02, 0.673],
        size=[0.028, 0.028, 0.025], contype=TABLE, conaffinity=ROBOT | BLOCK, rgba=WHITE,
    )  # fmt: skip


def _add_blocks(spec: mujoco.MjSpec, s: L.Layout) -> None:
    for color, rgb in L.BLOCK_COLORS.items():
        size = np.array(s.block_size(color))
        block = spec.worldbody.add_body(name=f"block_{color}", pos=[0, 0, 1])
        block.add_freejoint(name=f"block_{color}")
        _box(
            block, f"block_{color}", -size / 2, size / 2, BLOCK, rgba=(*rgb, 1), mass=L.BLOCK_MASS,
            friction=[L.BLOCK_FRICTION, 0.005, 0.0001], condim=4, solref=STIFF, priority=1,
            gap=TOUCH,
        )  # fmt: skip


def _add_robot(spec: mujoco.MjSpec) -> None:
    folder = _mesh_folder()

    def link_mesh(body, name: str, mass: float, rgba=WHITE, **options) -> None:
        spec.add_mesh(name=name, file=str(folder / f"{name}.stl"), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX)
        body.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, mass=mass, contype=ROBOT, conaffinity=TABLE | BLOCK,
            rgba=rgba, **options,
        )  # fmt: skip

    pedestal = spec.worldbody.add_body(name="pedestal", pos=[L.ROBOT_BASE[0] - 0.05, L.ROBOT_BASE[1], 0.12])
    pedestal.add_geom(
        name="pedestal", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.13, 0.12, 0], contype=0, conaffinity=0, rgba=WHITE
    )
    body = spec.worldbody.add_body(name="link0", pos=list(L.ROBOT_BASE), gravcomp=1)
    link_mesh(body, "link0", LINK_MASS[0])
    for i, joint in enumerate(ARM_JOINTS):
        body = body.add_body(name=f"link{i + 1}", pos=OFFSETS[i], quat=_rotation_x(TILTS[i]), gravcomp=1)
        body.add_joint(
            name=joint, axis=[0, 0, 1], range=[JOINT_LOW[i] - 0.02, JOINT_HIGH[i] + 0.02], limited=True, armature=0.1,
            damping=[DAMPING_PER_GAIN * ARM_GAIN[i], 0, 0],
        )  # fmt: skip
        link_mesh(body, f"link{i + 1}", LINK_MASS[i + 1])
        actuator = spec.add_actuator(
            name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcerange=[-ARM_FORCE, ARM_FORCE]
        )
        actuator.set_to_position(kp=ARM_GAIN[i])
        actuator.forcelimited = True
    hand = body.add_body(name="hand", pos=[0, 0, FLANGE], quat=_rotation_z(HAND_YAW), gravcomp=1)
    link_mesh(hand, "hand", 0.81)
    hand.add_site(name="tcp", pos=[0, 0, TCP])
    right = np.cross(L.WRIST_VIEW, L.WRIST_UP)
    _add_camera(hand, "wrist", L.WRIST_EYE, right, L.WRIST_VIEW, L.WRIST_FOV)
    for side, joint in zip((1, -1), FINGER_JOINTS, strict=True):
        finger = hand.add_body(name=joint, pos=[0, 0, FINGER_BASE], gravcomp=1)
        finger.add_joint(
            name=joint, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, side, 0], range=[0, 0.04], limited=True,
            damping=[FINGER_DAMPING, 0, 0], armature=0.1,
        )  # fmt: skip
        length = FINGERTIP - FINGER_BASE
        stem = sorted((side * 0.004, side * 0.022))
        pad = sorted((0.0, side * 0.012))
        _box(finger, f"{joint}_stem", (-0.010, stem[0], 0), (0.010, stem[1], length - 0.035), ROBOT, rgba=WHITE, mass=0.06)
        _box(
            finger, f"{joint}_pad", (-0.010, pad[0], length - 0.045), (0.010, pad[1], length), ROBOT, rgba=WHITE, mass=0.04,
            friction=[1.0, 0.05, 0.001], condim=4, solref=STIFF, priority=2,
        )  # fmt: skip
        actuator = spec.add_actuator(
            name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, forcerange=[-FINGER_FORCE, FINGER_FORCE]
        )
        actuator.set_to_position(kp=FINGER_GAIN)
        actuator.forcelimited = True
    fingers = spec.add_equality(name="fingers", type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT)
    fingers.name1, fingers.name2 = FINGER_JOINTS
    fingers.data[:5] = [0, 1, 0, 0, 0]


def _add_camera(body, name: str, eye, right, forward, fovy: float) -> None:
    right, forward = right / np.linalg.norm(right), forward / np.linalg.norm(forward)
    up = np.cross(right, forward)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, up, -forward], axis=1).flatten())
    body.add_camera(name=name, pos=eye, quat=quat, fovy=fovy)


def static_projection(size: tuple[int, int]) -> tuple[float, ...]:
    """3x4 matrix of the static camera, row by row, for pictures of (height, width): see `vla.spec.Spec.projections`."""
    return _projection(L.STATIC_EYE, L.STATIC_LOOK_AT - L.STATIC_EYE, L.STATIC_UP, L.STATIC_FOV, size)


def wrist_projection(size: tuple[int, int]) -> tuple[float, ...]:
    """The same of the wrist camera, in the frame of the tool centre point: see `vla.spec.Spec.hand_projections`."""
    return _projection(L.WRIST_EYE - [0, 0, TCP], L.WRIST_VIEW, L.WRIST_UP, L.WRIST_FOV, size)


def _projection(eye, forward, up, fovy: float, size: tuple[int, int]) -> tuple[float, ...]:
    right = np.cross(forward, up)
    right, forward = right / np.linalg.norm(right), forward / np.linalg.norm(forward)
    down = np.cross(forward, right)
    focal = 0.5 / np.tan(np.deg2rad(fovy) / 2)  # in picture heights
    rows = [focal * size[0] / size[1] * right + 0.5 * forward, focal * down + 0.5 * forward, forward]
    return tuple(float(x) for row in rows for x in (*row, -row @ eye))


@functools.cache
def build(scene: str) -> mujoco.MjModel:
    """The compiled model of scene "A", "B", "C" or "D"; UserError for another name."""
    s = L.layout_of(scene)
    spec = mujoco.MjSpec()
    spec.modelname = f"playtable_{scene}"
    spec.compiler.autolimits = False
    spec.compiler.degree = False
    option = spec.option
    option.timestep = 1 / PHYSICS_HZ
    option.integrator = mujoco.mjtIntegrator.mjINT_DISCRETE
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10
    option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    option.gravity = [0, 0, -9.8]
    spec.visual.quality.numslices, spec.visual.quality.numstacks = 12, 8
    spec.visual.quality.offsamples = 0
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[5, 5, 0.1], contype=TABLE, conaffinity=ROBOT | BLOCK,
        rgba=(0.85, 0.85, 0.86, 1),
    )  # fmt: skip
    spec.worldbody.add_light(name="key", pos=[1.5, -1.5, 3], dir=[-0.4, 0.45, -0.8], castshadow=False)
    forward = L.STATIC_LOOK_AT - L.STATIC_EYE
    _add_camera(spec.worldbody, "static", L.STATIC_EYE, np.cross(forward, L.STATIC_UP), forward, L.STATIC_FOV)
    _add_table(spec, s)
    _add_robot(spec)
    _add_blocks(spec, s)
    # [target tcp x y z, roll pitch yaw, last gripper action, lightbulb, led, switch on, button pressed]
    spec.nuserdata = 11
    return spec.compile()


@functools.cache
def part_of_geom(scene: str) -> np.ndarray:
    """(ngeom,) index into PARTS of every geom."""
    model = build(scene)
    parts = []
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        name = "floor" if body == "world" else body
        parts.append(PARTS.index(name) if name in PARTS else PARTS.index("robot"))
    return np.array(parts, dtype=np.int32)
