"""Foresight on recorded frames: horizons, moving pixels, what is left out, the pages."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from PIL import Image

from policies.gr1.policy import GR1Policy
from vla.checkpoint import build_policy, save_checkpoint
from vla.data.store import DatasetWriter, Segment
from vla.evaluation.foresight import judge, run, write
from vla.images import ssim
from vla.spec import Entry, Spec, UserError

SIZE = 24
SPEC = Spec(
    cameras={"static": (SIZE, SIZE), "wrist": (SIZE, SIZE)},
    state=tuple(Entry(f"s{i}", "1") for i in range(15)),
    action=(*(Entry(f"a{i}", "1", -1.0, 1.0) for i in range(6)), Entry("gripper", "1", -1.0, 1.0)),
    action_kind="relative_pose",
    control_hz=30.0,
)
VIDEO = Spec(cameras={"static": (SIZE, SIZE)})


def moving(length: int, seed: int) -> np.ndarray:
    """A bright square that goes to the right by a pixel a frame over noise that stands still."""
    back = np.random.default_rng(seed).integers(40, 90, (SIZE, SIZE, 3), dtype=np.uint8)
    frames = np.repeat(back[None], length, axis=0)
    for t in range(length):
        frames[t, 8:16, t % 16 : t % 16 + 8] = 230
    return frames


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("foresight"), np.random.default_rng(0)
    for name, spec in (("play", SPEC), ("video", VIDEO)):
        with DatasetWriter(root / name, spec, {}) as writer:
            for episode in range(4):
                arrays = {f"observation.images.{c}": moving(20, episode) for c in spec.cameras}
                vectors = (("observation.state", spec.state), ("action", spec.action))
                arrays |= {n: rng.uniform(-1, 1, (20, len(v))).astype(np.float32) for n, v in vectors if v}
                writer.append_episode(arrays, [Segment(0, 20, "", "watch the square")])
    with initialize_config_module("conf", version_base="1.3"):
        policy = compose("train", overrides=["policy=gr1_small"]).policy
    policy.size, policy.history, policy.micro_batch, policy.augment.swap = SIZE, 2, 4, 0.0
    for name, spec in (("net", SPEC), ("video_net", VIDEO)):
        torch.manual_seed(0)
        net = build_policy(policy, spec)
        save_checkpoint(root / name, net, policy, {"step": 7})
    return root


def config(*overrides: str):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("foresight", overrides=["out=x", "data.holdout=2", "windows=30", "strips=3", *overrides])


class Still(GR1Policy):
    """Imagines that nothing moves."""

    def foresee(self, memory):
        return {camera: memory[f"picture.{camera}"].numpy() for camera in self.model.cameras}


def test_who_imagines_that_nothing_moves_has_a_ratio_of_one(folders, monkeypatch):
    monkeypatch.setattr(GR1Policy, "foresee", Still.foresee)
    result, _ = run(config(f"checkpoint={folders}/net", f"data.path={folders}/play"))
    for horizons in result["foresight"].values():
        assert list(horizons) == ["3", "6", "9"]
        for row in horizons.values():
            assert row["ratio"] == 1
            assert row["ssim"] == row["ssim_still"] < 1
        # A square of 8 x 8 that went 3 steps uncovers 3 columns and covers 3; further ahead fewer windows have a future.
        assert horizons["3"]["moving_pixels"] > 0
        assert horizons["9"]["frames"] < horizons["3"]["frames"] <= 30


def test_who_knew_the_future_would_err_in_nothing():
    now, future = moving(12, 1)[:6], moving(12, 1)[6:]
    error, still, pixels, alike, alike_still, frames = judge(future, future, now)
    assert (error, frames) == (0, 6)
    assert alike == pytest.approx(6)
    assert alike_still < 6
    assert still > 0
    assert pixels == 6 * 2 * 8 * 6


def test_further_horizons_are_imagined_from_own_pictures_alone(folders, monkeypatch):
    """Nothing but the frames up to now may be shown to the policy."""
    shown, remember = [], GR1Policy.remember

    def watched(self, observation, memory):
        shown.append(observation["observation.images.static"])
        return remember(self, observation, memory)

    monkeypatch.setattr(GR1Policy, "remember", watched)
    result, strips = run(config(f"checkpoint={folders}/net", f"data.path={folders}/play", "windows=4", "strips=1"))
    assert len(shown) == 2 + 2  # a history of two recorded frames, then two of its own pictures
    assert [frames.shape[1] for frames in shown] == [SIZE] * 4
    recorded = np.concatenate([moving(20, episode) for episode in (1, 3)])
    assert all(any((frame == r).all() for r in recorded) for frame in (*shown[0], *shown[1]))
    assert not any((frame == r).all() for frame in (*shown[2], *shown[3]) for r in recorded)
    assert len(strips) == 1
    assert result["settings"]["windows"] == 4


def test_the_page_holds_everything(folders, tmp_path):
    result, strips = run(config(f"checkpoint={folders}/video_net", "data=droid", f"data.path={folders}/video"))
    again, _ = run(config(f"checkpoint={folders}/video_net", "data=droid", f"data.path={folders}/video"))
    assert again["foresight"] == result["foresight"]
    write(str(tmp_path / "out"), result, strips)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "static, 9 steps ahead" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
    assert Image.open(tmp_path / "out" / "strips.png").height == sum(len(s) for s in strips)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["foresight"].keys() == {"static"}


def test_what_the_data_lacks_is_told_or_blank(folders):
    lacks = [f"checkpoint={folders}/net", "data=droid", f"data.path={folders}/video"]
    with pytest.raises(UserError, match="needs camera 'wrist'"):
        run(config(*lacks))
    result, _ = run(config(*lacks, "blank=true"))
    assert result["settings"]["shown as blank"] == ["wrist", "observation.state"]
    assert result["foresight"].keys() == {"static"}
    with pytest.raises(UserError, match="windows is 0"):
        run(config(f"checkpoint={folders}/net", f"data.path={folders}/play", "windows=0"))


def test_likeness():
    same = torch.rand(2, 3, 16, 16) * 2 - 1
    assert ssim(same, same).tolist() == pytest.approx([1, 1])
    assert ssim(same, -same).max() < 0.5
