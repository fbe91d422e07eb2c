"""Annotation files as Something-Something V2 and Ego4D have them, with small real videos."""

import json

import numpy as np
import pytest
from test_convert_videos import COLOURS, STEP, make_clip

from vla.commands.convert import main
from vla.data.convert.videos import convert, decode
from vla.data.store import Dataset, check
from vla.spec import UserError

LABELS = [
    {"id": "12", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
    {"id": 7, "label": " pushing a box \n"},
    {"id": "12", "label": "again"},
    {"id": "404", "label": "nowhere"},
    {"id": "3", "template": "Holding [something]"},
    {"id": "4", "label": "damaged"},
    {"id": "../12", "label": "climbing"},
    {"id": "x" * 300, "label": "no file could be named so"},
    {"label": "nobody"},
    "nonsense",
]


def narrated(*rows):
    texts = [{"narration_text": text, "timestamp_sec": seconds, "annotation_uid": "u"} for seconds, text in rows]
    return {"narration_pass_1": {"narrations": texts, "summaries": []}, "status": "complete"}


def numbers(frames):
    """Which frames of a `make_clip` these are, modulo 12."""
    brightness = frames[:, frames.shape[1] // 2, frames.shape[2] // 2, 1].astype(int) - int(COLOURS[1, 1])
    return np.round(brightness / STEP).astype(int).tolist()


def ego4d(folder, out, **options):
    return convert(folder, out, "ego4d", str(folder / "narration.json"), size=8, **options)


def test_something_something(tmp_path, monkeypatch, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("12", "7", "3", "9", "5"):
        make_clip(videos / f"{name}.webm", frames=12, codec="libvpx-vp9", deadline="realtime")
    (videos / "4.webm").write_text("not a video")
    train, validation = tmp_path / "train.json", tmp_path / "validation.json"
    train.write_text(json.dumps(LABELS))
    validation.write_text(json.dumps([{"id": "9", "label": "turning"}]))
    command = ["vla-convert", f"path={videos}", "captions=something_something", f"annotations=[{train},{validation}]"]
    command += ["size=8", f"out={tmp_path / 'out'}", f"hydra.run.dir={tmp_path / 'hydra'}"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capsys.readouterr().out
    faults = {
        "has the id of an earlier entry: " + f"{train} entry 3",
        "is not in the folder: 404.webm",
        "has no label: 3.webm",
        "4.webm",
        "climbs out of its folder: ../12.webm",
        "x" * 300,
        f"has no id: {train} entry 9, {train} entry 10",
        "note: 1 videos of",  # the fifth
    }
    assert [fault for fault in faults if fault not in said] == []
    assert "3 clips, 12 frames, 8 skipped" in said
    dataset = check(tmp_path / "out")
    assert dataset.scenes == ["12.webm", "7.webm", "9.webm"]
    assert dataset.instructions == ["", "holding a cup", "pushing a box", "turning"]


def test_narrations_are_parts_of_a_video(tmp_path):
    make_clip(tmp_path / "a.mp4", frames=120)
    rows = [(0.0, "#C C opens a drawer"), (1.0, "#c C picks up a cup"), (1.5, "#O man walks"), (3.0, "#C C closes the drawer")]
    rows += [(2.0, "#C C holds #unsure"), (3.8, "#C C sits down. ")]
    (tmp_path / "narration.json").write_text(json.dumps({"videos": {"a": narrated(*rows)}}))
    summary = ego4d(tmp_path, tmp_path / "out", longest=0.6)
    dataset = check(tmp_path / "out")
    assert summary.skipped == {}
    assert summary.notes == [
        "1 narrations that are about others (#O) were left out",
        "1 narrations that the narrator was not sure of (#unsure) were left out",
    ]
    assert dataset.scenes == ["a.mp4#t=0.000,0.600", "a.mp4#t=1.000,1.500", "a.mp4#t=3.000,3.600", "a.mp4#t=3.800,4.400"]
    assert dataset.instructions == ["", "closes the drawer", "opens a drawer", "picks up a cup", "sits down."]
    frames = np.split(dataset.images("static", np.arange(dataset.num_frames)), dataset.episode_ends[:-1])
    wanted = [range(0, 18, 3), range(30, 45, 3), range(90, 108, 3), range(114, 120, 3)]  # the last to the video's end
    assert [numbers(part) for part in frames] == [[n % 12 for n in part] for part in wanted]


@pytest.mark.parametrize("keys", ["7", "250"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_part_is_the_same_wherever_the_key_frames_are(tmp_path, keys, suffix):
    clip = make_clip(tmp_path / f"a.{suffix}", frames=90, g=keys)
    for begin, end, wanted in ((0.5, 1.0, range(15, 30, 3)), (2.2, None, range(66, 90, 3)), (1.01, 1.3, range(30, 39, 3))):
        assert numbers(decode(clip, 10, 8, begin=begin, end=end)) == [n % 12 for n in wanted]


def test_broken_narrations_are_told_and_skipped(tmp_path):
    for name in ("a", "b", "mute"):
        make_clip(tmp_path / f"{name}.mp4", frames=60)
    (tmp_path / "bad.mp4").write_text("not a video")
    rows = [
        (0, "#C C wipes"),
        (-1, "#C C x"),
        ("1", "#C C x"),
        (float("nan"), "#C C x"),
        (1.0, None),
        (1.1, "#C C"),
        (99, "#C C x"),
    ]
    rows += [(True, "#C C x"), (1.0, "#C C turns"), (1.0, "#C C twists"), (1.96, "#C C is too short")]
    content = {
        "a": narrated(*rows),
        "b": narrated((0.5, "pours")),
        "bad": narrated((0.5, "#C C x")),
        "gone": narrated((0.5, "#C C x")),
        "../a": narrated((0.5, "#C C x")),
        "mute": {"narration_pass_2": {"narrations": []}},
    }
    (tmp_path / "narration.json").write_text(json.dumps({"videos": content}))
    (tmp_path / "b.mp4").rename(tmp_path / "later.mp4")
    first = ego4d(tmp_path, tmp_path / "out", longest=1.0)
    assert first.skipped.pop("b.mp4") == "is not in the folder"
    (tmp_path / "later.mp4").rename(tmp_path / "b.mp4")
    told = []
    summary = ego4d(tmp_path, tmp_path / "out", longest=1.0, threads=3, report=told.append)  # goes on with what was not there
    assert told[0].startswith("2 of ")
    assert summary.skipped == first.skipped
    faults = dict(summary.skipped)
    for number in (2, 3, 4, 8):
        assert "has no time in the video" in faults.pop(f"a.mp4 narration {number}")
    assert [faults.pop(f"a.mp4 narration {number}") for number in (5, 6)] == ["has no text", "has no text"]
    assert faults.pop("a.mp4 narration 9") == "has the time of another one"
    assert "ends before 99 s" in faults.pop("a.mp4#t=99.000,100.000")
    assert "too short" in faults.pop("a.mp4#t=1.960,2.960")
    assert "cannot be decoded" in faults.pop("bad.mp4#t=0.500,1.500")
    assert "climbs out" in faults.pop("../a.mp4")
    assert faults == {
        "gone.mp4": "is not in the folder",
        "mute.mp4": "has no narration_pass_1",
    }
    assert Dataset(tmp_path / "out").scenes == ["a.mp4#t=0.000,1.000", "a.mp4#t=1.000,1.960", "b.mp4#t=0.500,1.500"]
    with pytest.raises(UserError, match="begun with"):
        ego4d(tmp_path, tmp_path / "out", longest=2.0)


def test_mistakes_are_told(tmp_path):
    make_clip(tmp_path / "a.mp4", frames=4)
    file = tmp_path / "narration.json"
    file.write_text('{"videos": {"b": {}}}')
    mistakes = {
        ("none",): "captions is 'none': choose one of beside, something_something, ego4d",
        ("beside", str(file)): "captions is beside",
        ("ego4d",): "add annotations=",
        ("ego4d", str(tmp_path / "no.json")): "cannot be read",
        ("something_something", str(file)): "is not a list",
        ("ego4d", (str(file),)): r"no entry of .* has a clip in .*first: b.mp4 is not in the folder",
    }
    for arguments, words in mistakes.items():
        with pytest.raises(UserError, match=words):
            convert(tmp_path, tmp_path / "out", *arguments)
    file.write_text("[]")
    with pytest.raises(UserError, match='has no "videos"'):
        ego4d(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="longest"):
        ego4d(tmp_path, tmp_path / "out", longest=0)
    assert not (tmp_path / "out").exists()
