"""Where the hand goes in the pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla.data.store import Dataset
from vla.spec import ENVIRONMENT_STATE, STATE, UserError

POSITION = ("tcp_x", "tcp_y", "tcp_z")
ANGLES = ("tcp_roll", "tcp_pitch", "tcp_yaw")
"""Extrinsic xyz Euler angles."""
NEAR = 0.25
"""Metres. Of the way there only what is so near to its end counts: what lies under the rest does not matter for the task."""
STIRS = {"m": 0.01, "rad": 0.1}
"""From so much on, in its unit, an entry of the environment state has changed; 0.5 in any other unit."""
LAST = 10
"""Frames at a segment's end: what changes within them is what its task is about."""
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
        self._work = beginnings(dataset)
        self._pose = dataset.vectors[STATE][:, [names.index(n) for n in POSITION + ANGLES * bool(self.riding)]]

    @property
    def cameras(self) -> list[str]:
        """Which ones."""
        return sorted({*self.still, *self.riding})

    def __call__(self, now: np.ndarray, frames: np.ndarray, segment: np.ndarray) -> dict[str, np.ndarray]:
        """The places of `frames` (B, K) in the pictures of `now` (B,): camera -> float32 (B, K, 2), see Windows.batch.

        Places where the hand is before anything moves in the window's `segment` (B,), -1 for none, or farther than `NEAR` from
        the last one, are replaced by the first.
        """
        points = self._pose[frames, :3].astype(np.float64)
        away = np.linalg.norm(points - points[:, -1:], axis=-1) > NEAR
        if len(self._work):
            away |= (frames < np.where(segment >= 0, self._work[segment], 0)[:, None]) & (frames < frames[:, -1:])
        points = np.where(away[..., None], points[:, :1], points)
        found = {camera: _project(matrix, points) for camera, matrix in self.still.items()}
        if self.riding:
            ahead = points - self._pose[now, None, :3]
            turned = np.einsum("bki,bij->bkj", ahead, rotations(self._pose[now, 3:]))  # by the transpose: into the hand's frame
            found |= {camera: _project(matrix, turned) for camera, matrix in self.riding.items()}
        return found


def beginnings(dataset: Dataset) -> np.ndarray:
    """Of each segment the dataset's frame at which what moves at its end moves for the first time, int64 (S,).

    It is the segment's first one where the dataset has no environment state to tell. What moves without being there at the end
    (a block of the task before that still falls) does not count, unless nothing else does; and where nothing ever moves it is
    the last one.
    """
    starts, ends = (dataset.segments[name].astype(np.int64) for name in ("start", "end"))
    if ENVIRONMENT_STATE not in dataset.vectors:
        return starts
    units = [entry.unit for entry in dataset.spec.environment_state]
    turning, least = np.array([u == "rad" for u in units]), np.array([STIRS.get(u, 0.5) for u in units])

    def stirred(change: np.ndarray) -> np.ndarray:
        return np.abs(np.where(turning, (change + np.pi) % (2 * np.pi) - np.pi, change)) > least

    found = ends - 1
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        state = dataset.vectors[ENVIRONMENT_STATE][start:end]
        moved = stirred(state - state[0])
        last = stirred(state[-1] - state[-min(LAST, len(state))])
        moved = moved[:, last] if last.any() else moved
        if moved.any():
            found[i] = start + moved.any(1).argmax()
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
