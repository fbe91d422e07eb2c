"""The log line, the smoothed losses, the pictures."""

import json
import re

import numpy as np
import pytest
import torch

from vla.spec import UserError
from vla.training.logging import Board, Smooth, circumstances, line
from vla.training.pictures import batch_picture


def test_line_is_readable():
    said = line(1200, 0.06, {"loss": 0.1234, "action": 0.1, "foresight": 0.5}, 9.8e-4, 812.3, 751.0, 20000)
    assert re.fullmatch(
        r"step 1,200/20,000    6\.0 %  loss 0\.1234 \(action 0\.1000, foresight 0\.5000\)  lr 9\.8e-04"
        r"  812 windows/s  \d+\.\d GB( GPU)?  ETA 0:12:31",
        said,
    )
    assert line(3, 0.5, {"loss": 1.0}, 1e-3, 10, 60, None).startswith("step 3   50.0 %  loss 1.0000  lr")


def test_smooth_is_a_debiased_average_and_survives_json():
    smooth = Smooth(decay=0.5)
    smooth.update({"loss": torch.tensor(4.0)})
    assert smooth.values() == {"loss": pytest.approx(4.0)}
    smooth.update({"loss": 1.0, "rare": 7.0})
    assert smooth.values() == {"loss": pytest.approx((4 * 0.25 + 1 * 0.5) / 0.75), "rare": pytest.approx(7.0)}
    other = Smooth(decay=0.5)
    other.load(json.loads(json.dumps(smooth.state())), torch.device("cpu"))
    for either in (smooth, other):
        either.update({"loss": 0.3})
    assert other.values() == smooth.values()


def test_a_nan_is_not_smoothed_away():
    smooth = Smooth()
    smooth.update({"loss": float("nan")})
    for _ in range(10):
        smooth.update({"loss": 1.0})
    assert np.isnan(smooth.values()["loss"])


def test_wandb_that_is_not_installed(tmp_path):
    with pytest.raises(UserError, match="uv pip install wandb"):
        Board(tmp_path, 0, {}, {"project": "x"})


def test_circumstances_name_versions_and_machine():
    found = json.loads(json.dumps(circumstances(torch.device("cpu"))))
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["host"]["cores"] >= 1
    assert found["host"]["cpu"]


def test_picture_shows_every_frame_of_the_batch():
    torch.manual_seed(0)
    batch = {
        "observation.images.static": torch.full((3, 2, 20, 20, 3), 200, dtype=torch.uint8),
        "observation.images.wrist": torch.full((3, 2, 8, 8, 3), 90, dtype=torch.uint8),
        "future.images.static": torch.full((3, 2, 20, 20, 3), 30, dtype=torch.uint8),
        "future.images.wrist": torch.full((3, 2, 8, 8, 3), 60, dtype=torch.uint8),
        "observation.state": torch.randn(3, 2, 15),
        "action": torch.randn(3, 2, 10, 7),
        "action.mask": torch.ones(3, 2, 10, dtype=torch.bool),
        "task": ["push the red block", "open the drawer", "lift"],
    }
    picture = batch_picture(batch, samples=2)
    assert picture.dtype == np.uint8
    row = picture[: picture.shape[0] // 2]
    count = [int((row == value).all(-1).sum()) for value in (200, 90, 30, 60)]
    frames = (2, 2, 1, 1)  # two of now and one of the future for each camera
    assert all(abs(c - n * 128 * 128) < 200 for c, n in zip(count, frames, strict=True))
    other = batch_picture({**batch, "task": ["pull"] * 3}, samples=2)
    assert (other != picture).any()
    video = {k: v for k, v in batch.items() if not k.startswith(("action", "observation.state"))}
    assert batch_picture(video).shape[0] == 3 * picture.shape[0] // 2
