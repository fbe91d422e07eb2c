"""What the tasks see of a playtable: joints, lights, blocks and who touches whom. Plain values, no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COLOURS = ("red", "blue", "pink")
BLOCKS = frozenset(f"block_{colour}" for colour in COLOURS)
ROBOT = "robot"
# The links of the one table body; "base" is the table top with its legs, "plank" the floor of the cabinet, "slide" its door.
TABLE_PARTS = frozenset({"base", "plank", "drawer", "slide", "button", "switch", "led", "light"})
PARTS = TABLE_PARTS | BLOCKS | {ROBOT, "floor"}

type Vector = tuple[float, float, float]
type Quaternion = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Block:
    """A block in the world frame (metres, radians, seconds).

    position of the centre; quaternion (w, x, y, z); touches: names out of PARTS of all that it is in contact with.
    """

    position: Vector
    quaternion: Quaternion = (1.0, 0.0, 0.0, 0.0)
    linear_velocity: Vector = (0.0, 0.0, 0.0)
    angular_velocity: Vector = (0.0, 0.0, 0.0)
    touches: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` is its inverse."""
        return {
            "position": list(self.position),
            "quaternion": list(self.quaternion),
            "linear_velocity": list(self.linear_velocity),
            "angular_velocity": list(self.angular_velocity),
            "touches": sorted(self.touches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Block:
        numbers = {k: tuple(v) for k, v in data.items() if k != "touches"}
        return cls(**numbers, touches=frozenset(data["touches"]))


@dataclass(frozen=True, slots=True)
class State:
    """One instant of one world.

    slider, drawer, button, switch: joint positions in metres (slider grows to the left, drawer grows as it opens).
    lightbulb, led: whether they are lit. blocks: colour -> Block, all of COLOURS; never change it in place.
    robot_touches: names out of PARTS of all that the robot is in contact with.
    """

    slider: float
    drawer: float
    button: float
    switch: float
    lightbulb: bool
    led: bool
    blocks: Mapping[str, Block] = field(hash=False)
    robot_touches: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` is its inverse."""
        return {
            "slider": self.slider,
            "drawer": self.drawer,
            "button": self.button,
            "switch": self.switch,
            "lightbulb": self.lightbulb,
            "led": self.led,
            "blocks": {colour: block.to_dict() for colour, block in self.blocks.items()},
            "robot_touches": sorted(self.robot_touches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        blocks = {colour: Block.from_dict(block) for colour, block in data["blocks"].items()}
        return cls(**{**data, "blocks": blocks, "robot_touches": frozenset(data["robot_touches"])})
