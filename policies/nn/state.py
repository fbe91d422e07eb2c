"""The robot's state as network input: CALVIN's robot_obs (15), or any numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla.spec import STATE, Entry, UserError

ENCODINGS = ("auto", "raw", "rotation6d", "numbers")
ROBOT_OBS = ("tcp_x", "tcp_y", "tcp_z", "tcp_roll", "tcp_pitch", "tcp_yaw", "gripper_width")
"""What CALVIN's state begins with; the joints follow, and `gripper_action` ends it."""
TCP, EULER, WIDTH, COMMAND = slice(0, 3), slice(3, 6), slice(6, 7), slice(14, 15)


def rotation_columns(euler: Tensor) -> Tensor:
    """Extrinsic XYZ Euler angles (..., 3) in rad -> the first two columns of the rotation matrix (..., 6).

    Unlike the angles, which jump between -pi and pi where a downward gripper works, they are continuous.
    """
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(-1), euler.sin().unbind(-1)
    first = (cz * cy, sz * cy, -sy)
    second = (cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx)
    return torch.stack([*first, *second], dim=-1)


def is_robot_obs(state: Sequence[Entry]) -> bool:
    """Whether a state has the entries of CALVIN's robot_obs."""
    names = tuple(entry.name for entry in state)
    return len(names) == 15 and names[:7] == ROBOT_OBS and names[14] == "gripper_action"


class StateToken(nn.Module):
    """The state (M, S) -> one token (M, width).

    encoding `raw` (published): TCP position and Euler angles as they are, and the last gripper command one-hot.
    encoding `rotation6d`: normalised TCP position, two columns of the rotation matrix, normalised finger width, last gripper
    command: 11 numbers. Both read CALVIN's robot_obs (15). encoding `numbers`: any state, normalised. encoding `auto`:
    rotation6d where the entries are CALVIN's by name, else numbers.
    """

    def __init__(self, encoding: str, width: int, state: Sequence[Entry]):
        super().__init__()
        if encoding not in ENCODINGS:
            raise UserError(f"state encoding {encoding!r} is unknown: use one of {', '.join(ENCODINGS)}.")
        if encoding == "auto":
            encoding = "rotation6d" if is_robot_obs(state) else "numbers"
        if encoding != "numbers" and len(state) != 15:
            raise UserError(
                f"policy.state={encoding} reads CALVIN's 15 entries but the state has {len(state)}: use policy.state=numbers."
            )
        self.encoding = encoding
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(len(state)))
        self.register_buffer("std", torch.ones(len(state)))
        if encoding == "raw":
            self.arm, self.gripper, self.fuse = nn.Linear(6, width), nn.Linear(2, width), nn.Linear(2 * width, width)
        else:
            inputs = 11 if encoding == "rotation6d" else len(state)
            self.hidden, self.fuse = nn.Linear(inputs, width), nn.Linear(width, width)

    def standardise(self, statistics: Mapping[str, Mapping[str, Any]]) -> None:
        """Take mean and deviation from a dataset's statistics; an entry that hardly moves keeps its scale."""
        mean, std = (torch.as_tensor(np.asarray(statistics[STATE][k]), dtype=torch.float32) for k in ("mean", "std"))
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-4, std, 1.0))

    def forward(self, state: Tensor) -> Tensor:
        if self.encoding == "numbers":
            return self.fuse(nn.functional.silu(self.hidden((state - self.mean) / self.std)))
        closed, opened = state[:, COMMAND] < 0, state[:, COMMAND] >= 0
        if self.encoding == "raw":
            return self.raw(state[:, :6], torch.cat([closed, opened], dim=-1).to(state.dtype))
        normal = (state - self.mean) / self.std
        command = opened.to(state.dtype) * 2 - 1
        numbers = [normal[:, TCP], rotation_columns(state[:, EULER]), normal[:, WIDTH], command]
        return self.fuse(nn.functional.silu(self.hidden(torch.cat(numbers, dim=-1))))

    def raw(self, arm: Tensor, gripper: Tensor) -> Tensor:
        """The token from its published parts: TCP pose (M, 6), last gripper command (closed, open) one-hot (M, 2)."""
        return self.fuse(torch.cat([self.arm(arm), self.gripper(gripper)], dim=-1))
