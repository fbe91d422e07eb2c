"""Per-dimension statistics for normalising states and actions."""

from __future__ import annotations

import numpy as np

RANGE_FLOOR = 1e-2
"""Least q99 - q01 that is handed out. 1 cm or 0.6 degrees: below that a robot's number is noise, and dividing by it would
blow noise up to the size of a signal."""
STD_FLOOR = RANGE_FLOOR / 4


def describe(values: np.ndarray) -> dict[str, np.ndarray]:
    """mean, std, min, max, q01 and q99 of float (N, D), each float32 (D,).

    Where q99 - q01 is under RANGE_FLOOR both are moved apart about their middle; std is at least STD_FLOOR.
    """
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    middle, half = (low + high) / 2, np.maximum(high - low, RANGE_FLOOR) / 2
    found = {
        "mean": values.mean(0, dtype=np.float64),
        "std": np.maximum(values.std(0, dtype=np.float64), STD_FLOOR),
        "min": values.min(0),
        "max": values.max(0),
        "q01": middle - half,
        "q99": middle + half,
    }
    return {name: v.astype(np.float32) for name, v in found.items()}


def narrow(values: np.ndarray) -> np.ndarray:
    """Which of D dimensions had their range widened by `describe`: bool (D,)."""
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    return high - low < RANGE_FLOOR
