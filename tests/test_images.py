import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.images import resize_area


def by_repetition(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel split into enough copies that the new pixels hold whole copies; then averaged."""
    old_height, old_width, _ = image.shape
    fine = image.repeat(height, 0).repeat(width, 1).astype(np.float64)
    return fine.reshape(height, old_height, width, old_width, 3).mean((1, 3))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_area_average_is_exact(height, width, new_height, new_width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    out = resize_area(torch.from_numpy(image), new_height, new_width).numpy()
    assert out.dtype == np.uint8
    assert np.abs(out - by_repetition(image, new_height, new_width)).max() <= 0.501


def test_any_leading_axes_and_no_change_at_the_same_size():
    images = torch.randint(0, 256, (2, 3, 8, 6, 3), dtype=torch.uint8)
    out = resize_area(images, 4, 5)
    assert out.shape == (2, 3, 4, 5, 3)
    assert torch.equal(out[1, 2], resize_area(images[1, 2], 4, 5))
    assert resize_area(images, 8, 6) is images
