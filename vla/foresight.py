"""Is it foresight? Predicted frames against real ones, where something moves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MOVING = 12
"""A pixel moves if any of its channels changes by more than this many of 255 levels: above rendering and coding noise."""


def foresight_errors(predicted: np.ndarray, real_future: np.ndarray, current: np.ndarray) -> tuple[float, float, int]:
    """Sums over moving pixels of the squared error of the prediction and of "nothing moves", and the number of such pixels.

    All uint8 (N, H, W, 3) of one size. The sums add up over batches: the ratio of the totals is `foresight_ratio`.
    """
    if not predicted.shape == real_future.shape == current.shape:
        raise ValueError(f"frames differ in shape: {predicted.shape}, {real_future.shape}, {current.shape}")
    real, now, guess = (x.astype(np.float64) for x in (real_future, current, predicted))
    moving = np.abs(real - now).max(-1) > MOVING
    return float(((guess - real) ** 2)[moving].sum()), float(((now - real) ** 2)[moving].sum()), int(moving.sum())


def foresight_ratio(
    predicted: Mapping[str, np.ndarray], real_future: Mapping[str, np.ndarray], current: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Error of the predicted frame over the error of "nothing moves", on moving pixels: camera -> ratio.

    Frames are uint8 (N, H, W, 3) of one size per camera. Below 1 it is foresight, 0 is perfect, above 1 standing still would
    be the better guess; NaN where no pixel moves.
    """
    ratios = {}
    for camera, frames in predicted.items():
        error, still, pixels = foresight_errors(frames, real_future[camera], current[camera])
        ratios[camera] = error / still if pixels else float("nan")
    return ratios
