from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from played import SPEC, episode, write
from scipy.spatial.transform import Rotation

from vla.data.hand import NEAR, beginnings
from vla.data.store import Dataset, DatasetWriter, Segment, part_path
from vla.data.windows import Windows
from vla.images import resize_area
from vla.spec import Entry, Spec, UserError

LENGTHS = [17, 1, 40, 5, 23, 31]
SEGMENTS = [
    [Segment(0, 9, "open", "open it"), Segment(9, 15, "close", "shut it")],
    [Segment(0, 1, "open", "pull")],
    [Segment(3, 20, "close", "close it"), Segment(25, 40, "open", "open up")],
    [],
    [Segment(0, 23, "", "wander")],
    [Segment(10, 11, "open", "open it"), Segment(11, 30, "close", "shut it")],
]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Six episodes in two parts, and their frames end to end."""
    path = tmp_path_factory.mktemp("played")
    written = write(part_path(path, 0), LENGTHS[:3], SEGMENTS[:3])
    written += write(part_path(path, 1), LENGTHS[3:], SEGMENTS[3:], first_seed=3)
    return Dataset(path), {name: np.concatenate([w[name] for w in written]) for name in written[0]}


def naive_window(frames, episode_number, now, segment, history, stride, foresight, chunk, until):
    """One window the slow way; `now` counts from the episode's beginning, `segment` is a Segment or None."""
    first, length = sum(LENGTHS[:episode_number]), LENGTHS[episode_number]
    inside = range(segment.start, segment.end) if segment and until == "segment" else range(length)
    window = {k: [] for k in ("frame.mask", "future.mask", "action.mask", "action", "state", "static", "future.static")}
    for t in range(history):
        wanted = now - stride * (history - 1 - t)
        real, at = wanted >= 0, max(wanted, 0)
        window["frame.mask"].append(real)
        window["state"].append(frames["observation.state"][first + at])
        window["static"].append(frames["observation.images.static"][first + at])
        window["future.mask"].append(real and at + foresight < length)
        window["future.static"].append(frames["observation.images.static"][first + min(at + foresight, length - 1)])
        window["action.mask"].append([real and at + k in inside for k in range(chunk)])
        window["action"].append([frames["action"][first + min(at + k, length - 1)] for k in range(chunk)])
    return {k: np.array(v) for k, v in window.items()}


@settings(max_examples=25, deadline=None)
@given(
    history=st.integers(1, 4),
    stride=st.integers(1, 7),
    foresight=st.integers(1, 6),
    chunk=st.integers(1, 12),
    segments=st.sampled_from(["labelled", "all"]),
    until=st.sampled_from(["segment", "episode"]),
    mode=st.sampled_from(["memory", "stream"]),
)
def test_windows_are_those_of_the_naive_way(played, history, stride, foresight, chunk, segments, until, mode):
    dataset, frames = played
    expected = [(e, now, s) for e, labels in enumerate(SEGMENTS) for s in labels for now in range(s.start, s.end)]
    if segments == "all":
        labelled = {(e, now) for e, now, _ in expected}
        expected += [(e, now, None) for e in range(6) for now in range(LENGTHS[e]) if (e, now) not in labelled]
    windows = Windows(
        *(dataset, ["static"]),
        batch_size=len(expected),
        shuffle=False,
        history=history,
        history_stride=stride,
        foresight_steps=foresight,
        chunk=chunk,
        segments=segments,
        actions_until=until,
        mode=mode,
    )
    assert len(windows) == len(expected)
    batch = windows.batch(0)
    names = {"state": "observation.state", "static": "observation.images.static", "future.static": "future.images.static"}
    for i, (e, now, segment) in enumerate(expected):
        window = naive_window(frames, e, now, segment, history, stride, foresight, chunk, until)
        for name, value in window.items():
            np.testing.assert_array_equal(batch[names.get(name, name)][i].numpy(), value, err_msg=f"{name} of window {i}")
        assert batch["task"][i] == (segment.instruction if segment else "")
        assert windows.instructions[batch["task.index"][i]] == batch["task"][i]
        assert batch["task.name"][i] == (segment.task if segment else "")


def test_the_batch_has_the_agreed_shapes(played):
    batch = Windows(played[0], batch_size=8, history=3, chunk=4, environment_state=True).batch(0)
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items() if isinstance(v, torch.Tensor)} == {
        "observation.images.static": ((8, 3, 6, 4, 3), torch.uint8),
        "observation.images.wrist": ((8, 3, 3, 5, 3), torch.uint8),
        "future.images.static": ((8, 3, 6, 4, 3), torch.uint8),
        "future.images.wrist": ((8, 3, 3, 5, 3), torch.uint8),
        "future.mask": ((8, 3), torch.bool),
        "frame.mask": ((8, 3), torch.bool),
        "observation.state": ((8, 3, 2), torch.float32),
        "observation.environment_state": ((8, 3, 1), torch.float32),
        "action": ((8, 3, 4, 3), torch.float32),
        "action.mask": ((8, 3, 4), torch.bool),
        "task.index": ((8,), torch.int64),
        "progress": ((8, 3), torch.float32),
        "progress.mask": ((8, 3), torch.bool),
    }


def test_progress_runs_from_a_segments_first_frame_to_its_last(played):
    windows = Windows(played[0], batch_size=1, history=2, history_stride=1, segments="all", shuffle=False)
    known = []
    for number in range(len(windows)):
        batch = windows.batch(number)
        now, segment = windows._now[number], windows._segment[number]
        assert batch["progress.mask"][0, -1] == (segment >= 0)
        if segment < 0:
            continue
        first, end = (int(played[0].segments[name][segment]) for name in ("start", "end"))
        assert batch["progress"][0, -1] == pytest.approx((now - first) / max(end - 1 - first, 1))
        assert bool(batch["progress.mask"][0, 0]) == (now > first)
        known.append(float(batch["progress"][0, -1]))
    assert min(known) == 0.0
    assert max(known) == 1.0


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()
    )


def whole_state(batch):
    return [tuple(row) for row in batch["observation.state"][:, -1].tolist()]


def test_every_window_comes_once_per_epoch_whatever_the_batch_size(played):
    for size in (7, 16, 500):
        windows = Windows(played[0], batch_size=size, seed=3)
        stream = [row for number in range(-(-2 * len(windows) // size)) for row in whole_state(windows.batch(number))]
        first, second = stream[: len(windows)], stream[len(windows) : 2 * len(windows)]
        assert len(set(first)) == len(windows)
        assert set(first) == set(second)
        assert first != second


def test_a_batch_depends_on_its_number_and_the_seed_only(played):
    windows = Windows(played[0], batch_size=16, seed=3, shuffle_instructions=True, mode="memory")
    passed = [windows.batch(n) for n in range(12)]
    for threads, mode in ((1, "stream"), (4, "stream"), (4, "memory")):
        # A new object that starts in the middle of the second epoch, as after a kill.
        again = Windows(
            Dataset([p.path for p in played[0].parts]),
            batch_size=16,
            seed=3,
            shuffle_instructions=True,
            mode=mode,
            threads=threads,
        )
        assert again.fingerprint == windows.fingerprint
        assert all(same(again.batch(n), passed[n]) for n in (10, 9, 11))
    other = Windows(played[0], batch_size=16, seed=4, shuffle_instructions=True)
    assert other.fingerprint != windows.fingerprint
    assert not same(other.batch(0), passed[0])


def test_held_out_episodes_are_never_trained_on(played):
    parts = {p: Windows(played[0], batch_size=1, part=p, holdout=3, segments="all") for p in ("train", "validation", "all")}
    seen = {p: {row for n in range(len(w)) for row in whole_state(w.batch(n))} for p, w in parts.items()}
    assert seen["train"].isdisjoint(seen["validation"])
    assert seen["train"] | seen["validation"] == seen["all"]
    assert len(parts["validation"]) == LENGTHS[2] + LENGTHS[5]


def test_fewer_frames_for_learning_curves(played):
    small = Windows(played[0], max_frames=45, segments="all", mode="memory", batch_size=1)
    large = Windows(played[0], max_frames=80, segments="all", mode="memory", batch_size=1)
    rows = [{row for n in range(len(w)) for row in whole_state(w.batch(n))} for w in (small, large)]
    assert 0 < len(small) <= 45 < len(large) <= 80
    assert rows[0] < rows[1]


def test_other_words_for_the_same_task(played):
    windows = Windows(played[0], batch_size=len(Windows(played[0])), shuffle=False, shuffle_instructions=True)
    plain = Windows(played[0], batch_size=len(windows), shuffle=False).batch(0)["task"]
    meaning = {"open it": {"open it", "pull", "open up"}, "shut it": {"shut it", "close it"}, "wander": {"wander"}}
    meaning |= {"pull": meaning["open it"], "open up": meaning["open it"], "close it": meaning["shut it"]}
    heard = {text: set() for text in plain}
    for number in range(20):
        for text, said in zip(plain, windows.batch(number)["task"], strict=True):
            heard[text].add(said)
    assert heard == {text: meaning[text] for text in plain}


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_frames_are_resized_the_one_way(played, mode):
    windows = Windows(played[0], batch_size=9, mode=mode, image_size={"static": 3}, seed=1)
    full = Windows(played[0], batch_size=9, mode="stream", seed=1).batch(0)
    batch = windows.batch(0)
    assert torch.equal(batch["observation.images.static"], resize_area(full["observation.images.static"], 3, 3))
    assert torch.equal(batch["observation.images.wrist"], full["observation.images.wrist"])


def test_frames_that_do_not_fit_are_streamed_unless_a_cache_holds_them(played, capsys, tmp_path):
    streamed = Windows(played[0], memory_gb=1e-9).batch(1)
    assert same(streamed, Windows(played[0], memory_gb=1).batch(1))
    assert same(streamed, Windows(played[0], memory_gb=1e-9, cache=tmp_path).batch(1))
    told = [line.split(" frames")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["windows: streaming 117", "windows: loading 117", "windows: mapping 117"]


def test_video_has_no_states_and_no_actions(tmp_path):
    with DatasetWriter(tmp_path / "v", Spec(cameras={"static": (6, 4)}), {}) as writer:
        writer.append_episode(
            {"observation.images.static": episode(0, 9)["observation.images.static"]}, [Segment(0, 9, "", "wipe")]
        )
    batch = Windows(tmp_path / "v", batch_size=4, history=2, foresight_steps=1).batch(0)
    images = {"observation.images.static", "future.images.static"}
    assert set(batch) == images | {"frame.mask", "future.mask", "task", "task.index", "task.name"}
    assert batch["task"] == ["wipe"] * 4


def test_mistakes_are_told(played, tmp_path):
    for wrong, words in (
        ({"cameras": ["top"]}, "no camera 'top'"),
        ({"part": "test"}, "part is 'test'"),
        ({"mode": "disk"}, "mode is 'disk'"),
        ({"segments": "some"}, "segments is 'some'"),
        ({"part": "validation", "holdout": 50}, "holdout=50"),
        ({"history": 0}, "history is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"foresight_steps": -1}, "foresight_steps is -1"),
    ):
        with pytest.raises(UserError, match=words):
            Windows(played[0], **wrong)
    write(tmp_path / "unlabelled", [5], [[]])
    with pytest.raises(UserError, match="no labelled segments"):
        Windows(tmp_path / "unlabelled")
    assert Windows(tmp_path / "unlabelled", segments="all", batch_size=2).batch(0)["task"] == ["", ""]
    assert SPEC.control_hz == Dataset(tmp_path / "unlabelled").spec.control_hz


def test_the_hand_path_is_the_way_from_now_to_the_end_of_the_segment(tmp_path):
    matrix = (2.0, 0.0, 0.0, 0.5, 0.0, 3.0, 0.0, 0.25, 0.0, 0.0, 1.0, 4.0)
    names = ("tcp_z", "tcp_x", "tcp_y")
    spec = replace(SPEC, state=tuple(Entry(n, "m") for n in names), projections={"static": matrix})
    state = np.random.default_rng(0).uniform(0, 0.14, size=(20, 3)).astype(np.float32)
    with DatasetWriter(tmp_path, spec, {}) as writer:
        segments = [Segment(2, 11, "open", "open it"), Segment(11, 20, "close", "shut it")]
        writer.append_episode(episode(0, 20) | {"observation.state": state}, segments)
    z, x, y = state.T
    expected = np.stack([(2 * x + 0.5) / (z + 4), (3 * y + 0.25) / (z + 4)], 1)
    windows = Windows(tmp_path, batch_size=18, shuffle=False, hand_path=5)
    batch = windows.batch(0)
    assert "path.wrist" not in batch
    np.testing.assert_allclose(batch["path.static"][0], expected[[2, 4, 6, 8, 10]], rtol=1e-5)
    np.testing.assert_allclose(batch["path.static"][8], expected[[10] * 5], rtol=1e-5)
    np.testing.assert_allclose(batch["path.static"][9], expected[[11, 13, 15, 17, 19]], rtol=1e-5)
    assert windows.fingerprint != Windows(tmp_path, batch_size=18, shuffle=False).fingerprint


def test_the_way_there_is_left_out_of_the_hands_path(tmp_path):
    names = ("tcp_x", "tcp_y", "tcp_z")
    matrix = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    spec = replace(SPEC, state=tuple(Entry(n, "m") for n in names), projections={"static": matrix})
    state = np.zeros((20, 3), np.float32)
    state[:, 0] = np.linspace(0, 1, 20)  # a metre along x
    with DatasetWriter(tmp_path, spec, {}) as writer:
        writer.append_episode(episode(0, 20) | {"observation.state": state}, [Segment(0, 20, "open", "open it")])
    path = Windows(tmp_path, batch_size=20, shuffle=False, hand_path=20).batch(0)["path.static"][0, :, 0]
    wanted = state[(19 * np.linspace(0, 1, 20)).astype(int), 0]
    np.testing.assert_allclose(path, np.where(wanted < 1 - NEAR, 0, wanted), atol=1e-6)


def test_the_way_before_anything_moves_is_left_out_of_the_hands_path(tmp_path):
    matrix = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    things = (Entry("door", "m"), Entry("block", "m"), Entry("turn", "rad"), Entry("lamp", "1"))
    state = tuple(Entry(n, "m") for n in ("tcp_x", "tcp_y", "tcp_z"))
    spec = replace(SPEC, state=state, environment_state=things, projections={"static": matrix})
    hand = np.zeros((60, 3), np.float32)
    hand[:, 0] = np.tile(np.linspace(0, 0.19, 20), 3)
    seen = np.zeros((60, 4), np.float32)
    seen[3:, 1] = 0.5  # a block of the task before falls: at the end it lies still
    seen[14:20, 0] = 0.02 * np.arange(1, 7)  # what the first segment is about
    seen[20:, 0] = seen[19, 0]
    seen[25:40, 2], seen[40:, 2] = 3.14, -3.14  # hardly a turn
    seen[39:, 3] = 1  # the lamp, in the second segment's last frame; in the third nothing moves
    vectors = {"observation.state": hand, "observation.environment_state": seen}
    with DatasetWriter(tmp_path, spec, {}) as writer:
        segments = [Segment(20 * k, 20 * k + 20, f"t{k}", f"do {k}") for k in range(3)]
        writer.append_episode(episode(0, 60) | vectors, segments)
    assert beginnings(Dataset(tmp_path)).tolist() == [14, 39, 59]
    path = Windows(tmp_path, batch_size=60, shuffle=False, hand_path=20).batch(0)["path.static"][..., 0]
    way = (19 * np.linspace(0, 1, 20)).astype(int)
    np.testing.assert_allclose(path[0], np.where(way < 14, 0, hand[way, 0]), atol=1e-6)
    np.testing.assert_allclose(path[20], [0] * 19 + [hand[39, 0]], atol=1e-6)
    np.testing.assert_allclose(path[17], hand[(17 + 2 * np.linspace(0, 1, 20)).astype(int), 0], atol=1e-6)


def test_a_riding_camera_sees_the_hands_path_from_where_the_hand_is(tmp_path):
    matrix = (1.0, 0.0, 0.2, 0.0, 0.0, 1.0, 0.3, 0.0, 0.0, 0.0, 1.0, 0.0)  # along the hand's z
    names = ("tcp_x", "tcp_y", "tcp_z", "tcp_roll", "tcp_pitch", "tcp_yaw")
    spec = replace(SPEC, state=tuple(Entry(n, "1") for n in names), hand_projections={"wrist": matrix})
    state = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32) * np.float32([0.04] * 3 + [1] * 3)
    with DatasetWriter(tmp_path, spec, {}) as writer:
        writer.append_episode(episode(0, 20) | {"observation.state": state}, [Segment(0, 20, "open", "open it")])
    path = Windows(tmp_path, batch_size=20, shuffle=False, hand_path=20).batch(0)["path.wrist"][3]
    here = Rotation.from_euler("xyz", state[3, 3:].astype(float))
    for frame in (5, 12, 19):
        x, y, z = here.inv().apply(state[frame, :3].astype(float) - state[3, :3])
        seen = path[np.flatnonzero((3 + 16 * np.linspace(0, 1, 20)).astype(int) == frame)[0]]
        np.testing.assert_allclose(seen, [x / z + 0.2, y / z + 0.3] if z > 0 else [-9, -9], rtol=1e-3, atol=1e-4)


def test_cached_frames_are_the_same_and_made_once(played, tmp_path):
    dataset, _ = played
    plain = Windows(dataset, batch_size=7, image_size=3)
    for _ in range(2):
        cached = Windows(dataset, batch_size=7, image_size=3, cache=tmp_path, mode="memory")
        for number in (0, 5):
            for name, value in plain.batch(number).items():
                same = torch.equal(value, cached.batch(number)[name]) if torch.is_tensor(value) else True
                assert same, name
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npy")}
    assert len(made) == 2
    assert not list(tmp_path.glob("*.part"))
    Windows(dataset, batch_size=2, image_size=3, cache=tmp_path, mode="memory")
    assert {p: p.stat().st_mtime_ns for p in made} == made
    Windows(dataset, batch_size=2, image_size=2, cache=tmp_path, mode="memory")
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_a_cache_killed_halfway_is_made_again(played, tmp_path):
    dataset, _ = played
    Windows(dataset, ["static"], batch_size=2, image_size=3, cache=tmp_path, mode="memory")
    (file,) = tmp_path.glob("*.npy")
    whole = file.read_bytes()
    file.with_suffix(".part").write_bytes(whole[: len(whole) // 2])
    file.unlink()
    Windows(dataset, ["static"], batch_size=2, image_size=3, cache=tmp_path, mode="memory")
    assert file.read_bytes() == whole
