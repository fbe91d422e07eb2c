"""What a world, a dataset, a checkpoint and a policy say about themselves, and the names of what flows between them.

This is the only module that everybody imports. An observation is a flat dict with LeRobot's feature names; with N worlds
every array has a leading N:

    observation.images.<camera>     uint8   (N, H, W, 3)  RGB, row 0 at the top
    observation.state               float32 (N, S)        proprioception, meaning and unit of each entry in the Spec
    observation.environment_state   float32 (N, E)        privileged simulator state; only experts and tests may read it
    task                            list of N strings     the instruction
    plan                            float32 (N, L, A)     actions that will be executed from now on unless a new chunk comes
    plan.weight                     float32 (N, L)        how firmly to keep to each: 1 it is executed anyway, 0 not at all

The last two are there only where an executor shows its plan (vla/executor.py, real-time chunking).
An action chunk is float32 (N, horizon, A) in the Spec's range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"
TASK = "task"
PLAN = "plan"
PLAN_WEIGHT = "plan.weight"

PROJECTIONS = ("projections", "hand_projections")
SCHEMA_VERSION = 1


class UserError(Exception):
    """A mistake that its maker can mend, in one sentence naming the thing, the value and the mend.

    Commands print it and exit with status 2.
    """


def image_key(camera: str) -> str:
    """The observation's name for a camera's image."""
    return IMAGE_PREFIX + camera


@dataclass(frozen=True)
class Entry:
    """One number of a state or action vector.

    `unit` is SI ("m", "rad", "1" for dimensionless); `low` and `high` bound an action entry and are None for a state.
    """

    name: str
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Spec:
    """The shape and meaning of everything that crosses a boundary.

    cameras: name -> (height, width) in pixels.
    state, action, environment_state: entries in order.
    action_kind: "relative_pose" (end-effector delta per control step), "absolute_pose" or "joints".
    control_hz: control steps a second; None for a video dataset that has no actions.
    frame: convention of poses and angles, in words.
    projections: camera that stands still -> 3x4 matrix, row by row, that takes a point of `frame` (x, y, z, 1) in metres to
    (u w, v w, w): u to the right and v downwards in shares of the picture, (0, 0) its upper left corner.
    hand_projections: the same for cameras that ride on the hand, and points in its frame (the state's tcp_* entries).
    """

    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    state: tuple[Entry, ...] = ()
    action: tuple[Entry, ...] = ()
    environment_state: tuple[Entry, ...] = ()
    action_kind: str = "none"
    control_hz: float | None = None
    frame: str = ""
    projections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hand_projections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A plain JSON-able dict; `from_dict` is its inverse."""
        lists = {name: {k: list(v) for k, v in getattr(self, name).items()} for name in ("cameras", *PROJECTIONS)}
        return {"schema": SCHEMA_VERSION, **asdict(self), **lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spec:
        """Rebuild a Spec; raises UserError for another schema version."""
        if data.get("schema") != SCHEMA_VERSION:
            raise UserError(
                f"spec schema is {data.get('schema')!r}, this version reads {SCHEMA_VERSION}: convert the file again."
            )
        entries = {k: tuple(Entry(**e) for e in data[k]) for k in ("state", "action", "environment_state")}
        cameras = {k: (int(h), int(w)) for k, (h, w) in data["cameras"].items()}
        rest = {k: data[k] for k in ("action_kind", "control_hz", "frame")}
        # Older files have no projections.
        still, riding = ({k: tuple(map(float, m)) for k, m in data.get(n, {}).items()} for n in PROJECTIONS)
        return cls(cameras=cameras, **entries, **rest, projections=still, hand_projections=riding)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        return cls.from_dict(json.loads(text))


def require_match(needs: Spec, has: Spec, needs_name: str, has_name: str) -> None:
    """Check that `has` offers all that `needs` asks for; raise UserError naming the first difference and both values.

    Cameras are compared by name only: image size is adapted by the policy's transform. Empty vectors in `needs` ask for
    nothing, so that a policy pretrained on video meets any dataset, and an expert meets a world without cameras.
    """
    for camera in needs.cameras:
        if camera not in has.cameras:
            raise UserError(
                f"{needs_name} needs camera {camera!r} but {has_name} has {sorted(has.cameras)}: rename or add the camera."
            )
    for kind in ("state", "action", "environment_state"):
        wanted, offered = getattr(needs, kind), getattr(has, kind)
        if not wanted:
            continue
        if len(wanted) != len(offered):
            raise UserError(
                f"{needs_name} has {kind} of {len(wanted)} entries but {has_name} has {len(offered)}: "
                "use parts made for each other."
            )
        for i, (a, b) in enumerate(zip(wanted, offered, strict=True)):
            if a != b:
                raise UserError(f"{kind}[{i}] is {a} in {needs_name} but {b} in {has_name}: use parts made for each other.")
    for name in ("action_kind", "control_hz", "frame"):
        wanted, offered = getattr(needs, name), getattr(has, name)
        if needs.action and wanted != offered:
            raise UserError(
                f"{name} is {wanted!r} in {needs_name} but {offered!r} in {has_name}: use parts made for each other."
            )
