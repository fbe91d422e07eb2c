"""Where the hand goes in the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla.data.store import Dataset
from vla.spec import STATE, UserError

POSITION = ("tcp_x", "tcp_y", "tcp_z")
ANGLES = ("tcp_roll", "tcp_pitch", "tcp_yaw")
"""Extrinsic xyz Euler angles."""
NEAR = 0.25
"""Metres. Of the way there only what is so near to its end counts: what lies under the rest does not matter for the task."""
UNSEEN = -9.0
"""Stands for a point behind a camera: far outside the picture."""


class HandPath:
    """The tool centre point in the pictures of the cameras whose projection the dataset's Spec has.

    A still camera needs the state's tcp_x, tcp_y, tcp_z, one that rides on the hand tcp_roll, tcp_pitch, tcp_yaw besides.
    Raises UserError if no camera is left.
    """

    def __init__(self, dataset: Dataset, cameras: Sequence[str]) -> None:
        names, spec = [entry.name for entry in dataset.spec.state], dataset.spec
        placed, turned = ({*wanted} <= {*names} for wanted in (POSITION, ANGLES))
        self.still = {c: np.reshape(m, (3, 4)) for c, m in spec.projections.items() if c in cameras and placed}
        self.riding = {c: np.reshape(m, (3, 4)) for c, m in spec.hand_projections.items() if c in cameras and placed and turned}
        if not self.cameras:
            raise UserError(
                f"dataset {dataset.path} does not say where the hand is in a picture (projections of "
                f"{sorted({*spec.projections, *spec.hand_projections} & {*cameras})}, {len({*POSITION} & {*names})} of the "
                f"state entries {', '.join(POSITION)}): collect it anew or set policy.augment.swap=0."
            )
        self._pose = dataset.vectors[STATE][:, [names.index(n) for n in POSITION + ANGLES * bool(self.riding)]]

    @property
    def cameras(self) -> list[str]:
        """Which ones."""
        return sorted({*self.still, *self.riding})

    def __call__(self, now: np.ndarray, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The places of `frames` (B, K) in the pictures of `now` (B,): camera -> float32 (B, K, 2), see Windows.batch.

        Places farther than `NEAR` from the last one are replaced by the first.
        """
        points = self._pose[frames, :3].astype(np.float64)
        far = np.linalg.norm(points - points[:, -1:], axis=-1, keepdims=True) > NEAR
        points = np.where(far, points[:, :1], points)
        found = {camera: _project(matrix, points) for camera, matrix in self.still.items()}
        if self.riding:
            ahead = points - self._pose[now, None, :3]
            turned = np.einsum("bki,bij->bkj", ahead, rotations(self._pose[now, 3:]))  # by the transpose: into the hand's frame
            found |= {camera: _project(matrix, turned) for camera, matrix in self.riding.items()}
        return found


def rotations(angles: np.ndarray) -> np.ndarray:
    """Extrinsic xyz Euler angles (B, 3) -> rotation matrices (B, 3, 3)."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles).T, np.sin(angles).T
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """3x4 matrix, points (..., 3) -> float32 (..., 2)."""
    seen = points @ matrix[:, :3].T + matrix[:, 3]
    depth = seen[..., 2:]
    return np.where(depth > 1e-6, seen[..., :2] / np.where(depth > 1e-6, depth, 1), UNSEEN).astype(np.float32)
