"""CALVIN's robot_obs (15) as network input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla.spec import UserError

TCP, EULER, WIDTH, COMMAND = slice(0, 3), slice(3, 6), slice(6, 7), slice(14, 15)


def rotation_columns(euler: Tensor) -> Tensor:
    """Extrinsic XYZ Euler angles (..., 3) in rad -> the first two columns of the rotation matrix (..., 6).

    Unlike the angles, which jump between -pi and pi where a downward gripper works, they are continuous.
    """
    (cx, cy, cz), (sx, sy, sz) = euler.cos().unbind(-1), euler.sin().unbind(-1)
    first = (cz * cy, sz * cy, -sy)
    second = (cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx)
    return torch.stack([*first, *second], dim=-1)


class StateToken(nn.Module):
    """robot_obs (M, 15) -> one token (M, width).

    encoding `raw` (published): TCP position and Euler angles as they are, and the last gripper command one-hot.
    encoding `rotation6d`: normalised TCP position, two columns of the rotation matrix, normalised finger width, last gripper
    command: 11 numbers.
    """

    def __init__(self, encoding: str, width: int):
        super().__init__()
        if encoding not in ("raw", "rotation6d"):
            raise UserError(f"state encoding {encoding!r} is unknown: use raw or rotation6d.")
        self.encoding = encoding
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(15))
        self.register_buffer("std", torch.ones(15))
        if encoding == "raw":
            self.arm, self.gripper, self.fuse = nn.Linear(6, width), nn.Linear(2, width), nn.Linear(2 * width, width)
        else:
            self.hidden, self.fuse = nn.Linear(11, width), nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
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
