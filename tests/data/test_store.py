import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from played import SPEC, episode, write
from zarr.storage import LocalStore

from vla.data.store import Dataset, DatasetWriter, Segment, check, part_path
from vla.data.writer import FRAMES_PER_SHARD
from vla.spec import Spec, UserError

NAMES = list(episode(0, 1))


@st.composite
def plays(draw):
    lengths = draw(st.lists(st.integers(1, FRAMES_PER_SHARD + 40), min_size=1, max_size=3))
    play = []
    for length in lengths:
        cuts = sorted(draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, length)), max_size=4)))
        segments = [Segment(a, b, draw(st.text(max_size=5)), draw(st.text(max_size=9))) for a, b in cuts if a < b]
        play.append((length, segments, draw(st.text(max_size=3)), draw(st.integers(0, 2**62))))
    return play


@settings(max_examples=10, deadline=None)
@given(play=plays(), reopen=st.booleans(), data=st.data())
def test_what_was_written_is_what_is_read(play, reopen, data):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/d"
        writer = DatasetWriter(path, SPEC, {"seed": 1})
        written = []
        for number, (length, segments, scene, seed) in enumerate(play):
            if reopen and number:
                writer.close()
                writer = DatasetWriter(path, SPEC, {"ignored": "the first provenance stays"})
            written.append(episode(number, length))
            writer.append_episode(written[-1], segments[::-1], scene, seed)
        writer.close()
        dataset = check(path)
        whole = {name: np.concatenate([w[name] for w in written]) for name in NAMES}
        assert dataset.spec == SPEC
        assert dataset.provenance == [{"seed": 1}]
        assert dataset.episode_ends.tolist() == np.cumsum([length for length, *_ in play]).tolist()
        assert dataset.scenes == [scene for *_, scene, _ in play]
        assert dataset.episode_seeds.tolist() == [seed for *_, seed in play]
        for name, values in dataset.vectors.items():
            np.testing.assert_array_equal(values, whole[name])
        found = [
            (s["episode"], s["start"], s["end"], dataset.tasks[s["task"]], dataset.instructions[s["instruction"]])
            for s in dataset.segments
        ]
        wanted = [
            (i, s.start + start, s.end + start, s.task, s.instruction)
            for i, ((_, segments, *_), start) in enumerate(zip(play, dataset.episode_starts, strict=True))
            for s in segments
        ]
        assert sorted(found) == sorted(wanted)
        indices = np.array(sorted(data.draw(st.sets(st.integers(0, dataset.num_frames - 1), max_size=50))), np.int64)
        for camera, reader in dataset.parts[0].readers.items():
            assert reader.direct
            for direct in (True, False):  # the fast way and zarr's own
                reader.direct = direct
                np.testing.assert_array_equal(dataset.images(camera, indices), whole[f"observation.images.{camera}"][indices])


class Killed(BaseException):
    pass


def test_dying_at_any_write_loses_only_the_episode_in_flight(tmp_path, monkeypatch):
    """Every single write of the store is made the last one in turn, from creation through three episodes."""
    original = LocalStore.set
    left = [0]

    async def dying(self, *args, **kwargs):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        await original(self, *args, **kwargs)

    def play(path) -> int:
        done = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fcntl, "flock", lambda *_: None)  # a dead process holds no lock
            writer = DatasetWriter(path, SPEC, {})
            for seed in range(writer.num_episodes, 3):
                writer.append_episode(episode(seed, 5 + seed), [Segment(1, 3, "t", f"do {seed}")], seed=seed)
                done = seed + 1
        return done

    monkeypatch.setattr(LocalStore, "set", dying)
    for writes in range(0, 400, 7):
        path = tmp_path / f"d{writes}"
        left[0] = writes
        try:
            play(path)
            break
        except Killed:
            left[0] = 10**9
        before = Dataset(path).episode_seeds.tolist() if (path / "episode").exists() and _committed(path) else []
        assert before == list(range(len(before)))
        assert play(path) == 3
        dataset = check(path)
        assert dataset.episode_seeds.tolist() == [0, 1, 2]
        assert dataset.instructions == ["", "do 0", "do 1", "do 2"]
        np.testing.assert_array_equal(
            dataset.vectors["action"], np.concatenate([episode(i, 5 + i)["action"] for i in range(3)])
        )
        shutil.rmtree(path)
    assert writes > 60  # it did die in creation and in every episode


def _committed(path) -> int:
    return dict(zarr.open_group(str(path), mode="r").attrs).get("committed", {}).get("episodes", 0)


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from played import SPEC, episode
from vla.data.writer import DatasetWriter, Segment
writer = DatasetWriter(sys.argv[1], SPEC, {})
while True:
    seed = writer.num_episodes
    writer.append_episode(episode(seed, 40 + seed % 7), [Segment(0, 9, "t", "do it")], seed=seed)
    print(seed, flush=True)
"""


def test_kill_nine_and_go_on(tmp_path):
    path, rng = tmp_path / "d", random.Random(5)
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = int(process.stdout.readline())
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        told = int(([told, *process.stdout.read().split()])[-1])
        dataset = check(path)
        assert dataset.num_episodes >= told + 1
        assert dataset.episode_seeds.tolist() == list(range(dataset.num_episodes))
        whole = np.concatenate([episode(i, 40 + i % 7)["action"] for i in range(dataset.num_episodes)])
        np.testing.assert_array_equal(dataset.vectors["action"], whole)


def test_parts_are_one_dataset(tmp_path):
    write(tmp_path / "one", [4, 5, 6, 7])
    write(part_path(tmp_path / "many", 0), [4, 5])
    write(part_path(tmp_path / "many", 1), [6, 7], first_seed=2)
    (tmp_path / "many/part-002").mkdir()
    zarr.create_group(str(tmp_path / "many/part-002"))  # a writer that was killed before it had begun
    DatasetWriter(part_path(tmp_path / "many", 3), SPEC, {}).close()  # one that was killed in its first episode
    one, many = Dataset(tmp_path / "one"), Dataset(tmp_path / "many")
    assert many.episode_seeds.tolist() == [0, 1, 2, 3]
    assert many.episode_ends.tolist() == one.episode_ends.tolist()
    np.testing.assert_array_equal(many.segments, one.segments)
    np.testing.assert_array_equal(many.vectors["action"], one.vectors["action"])
    indices = np.array([0, 8, 9, 10, 21])
    np.testing.assert_array_equal(many.images("wrist", indices), one.images("wrist", indices))
    listed = Dataset([tmp_path / "many", tmp_path / "one"])
    assert listed.num_frames == 44
    assert listed.segments["episode"].tolist() == list(range(8))


def test_a_url_is_as_good_as_a_folder(tmp_path):
    write(tmp_path / "d", [20, 30])
    write("memory://bucket/d", [20, 30])
    write("memory://bucket/parts/part-000", [20, 30])
    local = Dataset(tmp_path / "d")
    for url in ("memory://bucket/d", "memory://bucket/parts"):
        remote = check(url)
        assert remote.digest == local.digest
        indices = np.array([0, 1, 17, 30, 49])
        np.testing.assert_array_equal(remote.images("static", indices), local.images("static", indices))


def test_digest_tells_data_apart(tmp_path):
    write(tmp_path / "a", [4, 5])
    write(tmp_path / "b", [4, 5])
    write(tmp_path / "c", [4, 5], first_seed=1)
    write(tmp_path / "e", [4, 5], segments=[[], []])
    digests = [Dataset(tmp_path / n).digest for n in "abce"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_statistics_are_floored_and_told(tmp_path):
    frames = episode(0, 200)
    frames["observation.state"][:, 1] = 0.5 + 1e-6 * np.arange(200)
    with DatasetWriter(tmp_path / "d", SPEC, {}) as writer:
        writer.append_episode(frames, [])
    dataset = Dataset(tmp_path / "d")
    found = dataset.statistics["observation.state"]
    np.testing.assert_allclose(found["mean"], frames["observation.state"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["q99"][0], np.quantile(frames["observation.state"][:, 0], 0.99), rtol=1e-5)
    assert found["q99"][1] - found["q01"][1] == pytest.approx(0.01, rel=1e-3)
    assert found["std"][1] >= 0.002
    assert len(dataset.narrow) == 1
    assert "observation.state[1] y" in dataset.narrow[0]
    saved = zarr.open_group(str(tmp_path / "d"), mode="r").attrs["statistics"]
    np.testing.assert_allclose(saved["action"]["q01"], dataset.statistics["action"]["q01"])


def _cut_short(path):
    shard = path / "observation.images.wrist/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:500])


def _flip(path, name, at):
    file = path / name
    content = bytearray(file.read_bytes())
    content[at] ^= 255
    file.write_bytes(content)


def _overwrite(path, name, index, value):
    zarr.open_group(str(path), mode="r+")[name][index] = value


def _halve(path, name):
    (path / name).write_text((path / name).read_text()[: (path / name).stat().st_size // 2])


def _say(path, name, value):
    zarr.open_group(str(path), mode="r+").attrs[name] = value


def _shorten(path):
    zarr.open_group(str(path), mode="r+")["action"].resize((300, 3))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut_short, ["observation.images.wrist", "episode 1", "frame 256"]),
        (lambda p: (p / "observation.images.static/c/0/0/0/0").unlink(), ["observation.images.static", "episode 0"]),
        (lambda p: _flip(p, "observation.images.static/c/0/0/0/0", 210 * 72 + 5), ["observation.images.static", "episode 1"]),
        (lambda p: _overwrite(p, "observation.state", (150, 1), np.nan), ["observation.state", "episode 0", "frame 150"]),
        (lambda p: _overwrite(p, "action", (320, 0), 0.25), ["action", "episode 1"]),
        (lambda p: (p / "action/c/0/0").unlink(), ["action", "episode 0"]),
        (lambda p: _flip(p, "action/c/0/0", 30), ["action"]),
        (_shorten, ["action", "300", "350"]),
        (lambda p: shutil.rmtree(p / "action"), ["lacks the array action"]),
        (lambda p: _overwrite(p, "episode/end", 0, 350), ["episode/end", "episode 1"]),
        (lambda p: _overwrite(p, "segment/end", 0, 201), ["segment/end", "episode 0", "[0, 201)"]),
        (lambda p: _halve(p, "zarr.json"), ["zarr.json cannot be read", "restore it"]),
        (lambda p: (p / "zarr.json").write_text(""), ["zarr.json cannot be read"]),
        (lambda p: _halve(p, "action/zarr.json"), ["action cannot be read"]),
        (lambda p: _halve(p, "observation.images.static/zarr.json"), ["observation.images.static cannot be read"]),
        (lambda p: _halve(p, "segment/task/zarr.json"), ["segment/task cannot be read"]),
        (lambda p: _say(p, "committed", "all"), ["zarr.json", "cannot be read"]),
        (lambda p: _say(p, "spec", {"schema": 1}), ["zarr.json", "cannot be read"]),
    ],
)
def test_damage_is_told_by_array_and_episode(tmp_path, damage, words):
    write(tmp_path / "d", [200, 150])
    check(tmp_path / "d")
    damage(tmp_path / "d")
    with pytest.raises(UserError) as error:
        check(tmp_path / "d")
    assert all(w in str(error.value) for w in words), error.value
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["zarr.json", "action/zarr.json", "episode/end/zarr.json"])
def test_a_damaged_dataset_is_not_appended_to(tmp_path, name):
    write(tmp_path / "d", [20])
    _halve(tmp_path / "d", name)
    before = {file: file.read_bytes() for file in (tmp_path / "d").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"cannot be read.*restore it"):
        DatasetWriter(tmp_path / "d", SPEC, {})
    assert {file: file.read_bytes() for file in before} == before


def test_bad_paths_are_told(tmp_path):
    with pytest.raises(UserError, match="there is no dataset at"):
        Dataset(tmp_path / "nothing")
    zarr.create_group(str(tmp_path / "other"))
    with pytest.raises(UserError, match="holds no dataset"):
        Dataset(tmp_path / "other")
    with pytest.raises(UserError, match="choose another path"):
        DatasetWriter(tmp_path / "other", SPEC, {})
    DatasetWriter(tmp_path / "empty", SPEC, {}).close()
    with pytest.raises(UserError, match="has no episodes"):
        Dataset(tmp_path / "empty")
    write(tmp_path / "d", [3])
    with pytest.raises(UserError, match="exists already"):
        DatasetWriter(tmp_path / "d", SPEC, {}, resume=False)
    with pytest.raises(UserError, match="cameras was"):
        DatasetWriter(tmp_path / "d", Spec(cameras={"static": (8, 8)}), {})
    with pytest.raises(UserError, match="no camera 'top'"):
        Dataset(tmp_path / "d").images("top", np.array([0]))
    with DatasetWriter(tmp_path / "v", Spec(cameras={"static": (6, 4)}), {}) as writer:
        with pytest.raises(UserError, match="being written by another process"):
            DatasetWriter(tmp_path / "v", Spec(cameras={"static": (6, 4)}), {})
        writer.append_episode({"observation.images.static": episode(0, 4)["observation.images.static"]}, [])
    with pytest.raises(UserError, match="different specs"):
        Dataset([tmp_path / "d", tmp_path / "v"])


@pytest.mark.parametrize(
    ("change", "segments", "words"),
    [
        ({"action": None}, [], "asks for"),
        ({"action": np.zeros((5, 3))}, [], "float64"),
        ({"action": np.zeros((4, 3), np.float32)}, [], "T = 5 in every array"),
        ({"action": np.full((5, 3), np.inf, np.float32)}, [], "inf at frame 0, entry 0"),
        ({}, [Segment(2, 6, "t", "i")], r"\[2, 6\)"),
        ({}, [Segment(3, 3, "t", "i")], r"\[3, 3\)"),
    ],
)
def test_a_bad_episode_is_refused_whole(tmp_path, change, segments, words):
    frames = {k: v for k, v in (episode(0, 5) | change).items() if v is not None}
    with DatasetWriter(tmp_path / "d", SPEC, {}) as writer:
        writer.append_episode(episode(1, 4), [])
        with pytest.raises(UserError, match=words):
            writer.append_episode(frames, segments)
    assert check(tmp_path / "d").num_frames == 4


def test_black_frames_are_frames(tmp_path):
    spec = Spec(cameras={"static": (4, 4)})
    with DatasetWriter(tmp_path / "black", spec, {}) as writer:
        for _ in range(2):
            writer.append_episode({"observation.images.static": np.zeros((300, 4, 4, 3), np.uint8)}, [])
    assert not check(tmp_path / "black").images("static", np.arange(600)).any()
