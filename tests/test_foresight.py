import numpy as np
import pytest

from vla.foresight import foresight_ratio

RNG = np.random.default_rng(0)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A square that moves to the right over a noisy background that does not: (now, future)."""
    back = RNG.integers(60, 120, (2, 16, 16, 3), dtype=np.uint8)
    now, future = back.copy(), back.copy()
    now[:, 4:8, 2:6], future[:, 4:8, 5:9] = 220, 220
    return now, future


def test_perfect_still_and_wrong_predictions():
    now, future = scene()
    pairs = {"static": future, "wrist": now, "third": np.zeros_like(now)}
    ratios = foresight_ratio(pairs, dict.fromkeys(pairs, future), dict.fromkeys(pairs, now))
    assert ratios["static"] == 0
    assert ratios["wrist"] == 1
    assert ratios["third"] > 1


def test_only_moving_pixels_count():
    now, future = scene()
    spoiled = future.copy()
    spoiled[:, 12:] = 0
    assert foresight_ratio({"static": spoiled}, {"static": future}, {"static": now}) == {"static": 0}


def test_nothing_moves_and_shapes_that_differ():
    now, future = scene()
    assert np.isnan(foresight_ratio({"static": now}, {"static": now}, {"static": now})["static"])
    with pytest.raises(ValueError, match="differ in shape"):
        foresight_ratio({"static": now[:, ::2]}, {"static": future}, {"static": now})
