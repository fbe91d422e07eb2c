import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from vla.data.convert.files import Fault
from vla.data.convert.videos import convert, decode
from vla.data.store import Dataset, DatasetWriter, check
from vla.data.windows import Windows
from vla.spec import Spec, UserError

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)  # left, middle and right third
STEP = 4  # brightness added per frame to every pixel


def make_clip(path, frames=30, fps=30, width=144, height=48, codec="libx264", **options):
    """Three colour bars that brighten frame by frame, so that a pixel tells the frame's number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "1", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        bars = np.repeat(COLOURS[None], height, 0).repeat(width // 3, 1)
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(bars + np.uint8(STEP * (number % 12)), format="rgb24")))
        container.mux(stream.encode())
    return path


def caption(folder, clips):
    (folder / "captions.jsonl").write_text("".join(json.dumps({"file": f, "instruction": i}) + "\n" for f, i in clips.items()))


@pytest.mark.parametrize(("fps", "wanted"), [(10, range(0, 30, 3)), (30, range(30)), (15, range(0, 30, 2)), (60, range(30))])
def test_frames_are_taken_in_time_and_averaged(tmp_path, fps, wanted):
    frames = decode(make_clip(tmp_path / "a.mp4"), fps, 8)
    expected = np.array([COLOURS[1] + STEP * (n % 12) for n in wanted])
    assert frames.shape == (len(expected), 8, 8, 3)
    assert np.abs(frames.astype(int) - expected[:, None, None]).max() <= 4  # the middle square is the green bar


def test_squash_keeps_the_whole_picture(tmp_path):
    first = decode(make_clip(tmp_path / "a.mp4"), 10, 9, "squash")[0].astype(int)
    assert np.abs(first[:, [1, 4, 7]] - COLOURS).max() <= 4


def test_broken_clips_are_told_and_skipped(tmp_path):
    good = make_clip(tmp_path / "good.mp4")
    make_clip(tmp_path / "mute.mp4")
    make_clip(tmp_path / "short.mp4", frames=1)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:700])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    broken = bytearray(make_clip(tmp_path / "noise.mp4", frames=60).read_bytes())
    middle = broken.index(b"mdat") + 8
    broken[middle : middle + 900] = bytes(900)
    (tmp_path / "noise.mp4").write_bytes(broken)
    caption(
        tmp_path,
        {
            f: f"do {f}"
            for f in ("good.mp4", "short.mp4", "cut.mp4", "text.mp4", "empty.mp4", "gone.mp4", "noise.mp4", "../good.mp4")
        },
    )
    summary = convert(tmp_path, tmp_path / "out", size=8)
    assert set(summary.skipped) == {
        "mute.mp4",
        "short.mp4",
        "cut.mp4",
        "text.mp4",
        "empty.mp4",
        "gone.mp4",
        "noise.mp4",
        "../good.mp4",
    }
    assert summary.skipped["mute.mp4"] == "has no caption"
    assert "too short" in summary.skipped["short.mp4"]
    assert "climbs out" in summary.skipped["../good.mp4"]
    assert "No such file" in summary.skipped["gone.mp4"]
    assert all("cannot be decoded" in summary.skipped[f] for f in ("cut.mp4", "text.mp4", "empty.mp4", "noise.mp4"))
    dataset = check(tmp_path / "out")
    assert summary.made == {"clips": dataset.num_episodes, "frames": dataset.num_frames} == {"clips": 1, "frames": 10}
    assert dataset.scenes == ["good.mp4"]


def test_captions_beside_the_clips_and_training_on_them(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("deep/b", "a"):
        make_clip(tmp_path / f"{name}.mkv")
        (tmp_path / f"{name}.txt").write_text(f"wipe {name}\n")
    convert(tmp_path, tmp_path / "out", camera="front", size=8, fps=10)
    dataset = Dataset(tmp_path / "out")
    assert dataset.scenes == ["a.mkv", "deep/b.mkv"]
    assert dataset.instructions == ["", "wipe a", "wipe deep/b"]
    batch = Windows(dataset, batch_size=20, shuffle=False, foresight_steps=1).batch(0)
    now, future = batch["observation.images.front"].int(), batch["future.images.front"].int()
    inside = batch["future.mask"][:, 0]
    assert inside.sum() == 18
    ahead = (now + 3 * STEP - future)[inside].abs()  # one step of 10 Hz is three frames of 30 Hz
    assert ((ahead <= 5) | (now[inside] - future[inside] >= 20)).all()  # or the brightness began anew


def test_a_killed_conversion_goes_on(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(40):
        make_clip(clips / f"{i:02d}.mp4", frames=12)
    caption(clips, {f"{i:02d}.mp4": f"do {i}" for i in range(40)})
    arguments = [f"path={clips}", f"out={tmp_path / 'out'}", "size=8", f"hydra.run.dir={tmp_path / 'hydra'}"]
    command = [sys.executable, "-m", "vla.commands.convert", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out/observation.images.static/c").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with DatasetWriter(tmp_path / "out", Spec(cameras={"static": (8, 8)}, frame="video"), {}) as writer:
        left = writer.num_episodes
    assert left < 40
    told = []
    summary = convert(clips, tmp_path / "out", size=8, report=told.append)
    assert (summary.made, summary.skipped) == ({"clips": 40, "frames": 160}, {})
    assert told == ([f"{left} of 40 clips are in {tmp_path / 'out'} already"] if left else [])
    assert check(tmp_path / "out").scenes == [f"{i:02d}.mp4" for i in range(40)]
    with pytest.raises(UserError, match="begun with"):
        convert(clips, tmp_path / "out", size=8, fps=5)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        convert(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="holds no clips"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="fit is 'zoom'"):
        convert(tmp_path, tmp_path / "out", fit="zoom")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()
    (tmp_path / "a.mp4").write_text("no")
    caption(tmp_path, {"a.mp4": "wipe"})
    with pytest.raises(UserError, match=r"none of the 1 clips .* a.mp4 cannot be decoded"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "instruction": "wipe"}\n{"file": ')
    with pytest.raises(UserError, match="line 2"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(Fault):
        decode(tmp_path / "a.mp4", 10, 8)
