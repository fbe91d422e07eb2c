"""CALVIN's table in numbers: what the four scenes share and where they differ.

Metres, world frame with z up, +x right, robot on the -y side; figures are those of the CALVIN environments after their
global scaling of 0.8. Looks (textures, light) are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla.spec import UserError

BLOCK_COLORS = {"red": (0.9, 0.08, 0.08), "blue": (0.1, 0.15, 0.9), "pink": (0.95, 0.25, 0.85)}
BLOCK_NAMES = tuple(BLOCK_COLORS)
BLOCK_SIZES = {"small": (0.04, 0.04, 0.04), "middle": (0.056, 0.04, 0.04), "big": (0.08, 0.04, 0.04)}
BLOCK_MASS = 1.0
BLOCK_FRICTION = 0.35
"""Sliding friction of a block on wood: Bullet multiplies 0.7 by 0.5, MuJoCo takes the maximum of two equal values."""

TABLE_TOP = 0.44
PLANK_TOP = 0.441
DRAWER_FLOOR = 0.3424
SWITCH_POINT = (0.0609, 0.4949)
"""y and z of the lever's frame, in the slanted front."""
SLOPE_POINT = (0.075, 0.5353)
"""A point (y, z) of the slanted cabinet front, which rises 60 degrees from the table towards the back."""
SLOPE_ANGLE = np.deg2rad(60.0)
CABINET_HALF_WIDTH = 0.26
DOOR_WIDTH = 0.28

JOINTS = ("base__slide", "base__drawer", "base__button", "base__switch")
BUTTON_THRESHOLD = 0.01
SWITCH_THRESHOLD = 0.044

ROBOT_BASE = (-0.34, -0.46, 0.24)
HOME_JOINTS = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
HOME_ROBOT_OBS = np.array(
    [0.02586842, -0.2313129, 0.5712808, 3.09045, -0.02909, 1.50014, 0.08, *HOME_JOINTS, 1.0], dtype=np.float64
)

STATIC_EYE = np.array([2.871459009488717, -2.166602199425597, 2.555159848480571])
STATIC_LOOK_AT = np.array([-0.026242351159453392, -0.0302329882979393, 0.3920000493526459])
STATIC_UP = np.array([0.4041403970338857, 0.22629790978217404, 0.8862616969685161])
STATIC_FOV = 10.0
WRIST_EYE = np.array([-0.1, 0.0, 0.0])
"""In the hand frame, as the two directions below."""
WRIST_VIEW = np.array([0.26750, 0.00021, 0.96356])
WRIST_UP = np.array([0.96356, 0.00077, -0.26750])
WRIST_FOV = 75.0

Interval = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """One scene: positions in metres; `blocks` maps colour to size; `block_order` is scene_obs's order of blocks."""

    name: str
    door_left: float
    slide_range: float
    cabinet_x: float
    drawer_x: float
    button_x: float
    button_y: float
    led_x: float
    switch_x: float
    bulb_y: float
    blocks: dict[str, str]
    block_order: tuple[str, str, str]
    table: Interval
    slider_left: Interval
    slider_right: Interval

    def block_size(self, color: str) -> tuple[float, float, float]:
        """Full edge lengths of a block; the long side is its local x."""
        return BLOCK_SIZES[self.blocks[color]]

    @property
    def joint_ranges(self) -> np.ndarray:
        """(4, 2) limits of slide, drawer, button and switch."""
        return np.array([[0, self.slide_range], [0, 0.22], [0, 0.02], [0, 0.088]])

    @property
    def cabinet(self) -> Interval:
        """Inner x range of the cabinet behind the door."""
        return (self.cabinet_x - CABINET_HALF_WIDTH, self.cabinet_x + CABINET_HALF_WIDTH)


SURFACE_Y = {"table": (-0.15, -0.03), "slider_left": (0.05, 0.12), "slider_right": (0.05, 0.12)}

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="A", door_left=-0.10, slide_range=0.28, cabinet_x=-0.10, drawer_x=0.10, button_x=-0.28, button_y=-0.12,
            led_x=-0.28, switch_x=0.30, bulb_y=0.132, blocks={"red": "middle", "blue": "big", "pink": "small"},
            block_order=("pink", "blue", "red"), table=(-0.2, 0.35), slider_left=(-0.32, -0.16), slider_right=(-0.05, 0.13),
        ),
        Layout(
            name="B", door_left=0.088, slide_range=0.304, cabinet_x=0.08, drawer_x=0.18, button_x=0.28, button_y=-0.12,
            led_x=0.28, switch_x=-0.32, bulb_y=0.136, blocks={"red": "small", "blue": "big", "pink": "middle"},
            block_order=("red", "blue", "pink"), table=(-0.35, 0.15), slider_left=(-0.12, 0.06), slider_right=(0.15, 0.33),
        ),
        Layout(
            name="C", door_left=0.06, slide_range=0.24, cabinet_x=0.08, drawer_x=0.10, button_x=-0.12, button_y=-0.12,
            led_x=-0.12, switch_x=-0.32, bulb_y=0.132, blocks={"red": "big", "blue": "small", "pink": "middle"},
            block_order=("blue", "red", "pink"), table=(0.0, 0.35), slider_left=(-0.12, 0.06), slider_right=(0.15, 0.30),
        ),
        Layout(
            name="D", door_left=-0.10, slide_range=0.28, cabinet_x=-0.10, drawer_x=0.18, button_x=-0.12, button_y=-0.12,
            led_x=-0.12, switch_x=0.30, bulb_y=0.132, blocks={"red": "middle", "blue": "small", "pink": "big"},
            block_order=("red", "blue", "pink"), table=(0.0, 0.35), slider_left=(-0.32, -0.16), slider_right=(-0.05, 0.13),
        ),
    )
}  # fmt: skip
SCENES = tuple(LAYOUTS)


def layout_of(scene: str) -> Layout:
    """The layout of a scene; raises UserError for an unknown one."""
    if scene not in LAYOUTS:
        raise UserError(f"unknown scene {scene!r}: the playtable has scenes {', '.join(LAYOUTS)}.")
    return LAYOUTS[scene]
