import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from calvin_folder import FIRST, play, write_split
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import vla.commands.convert
from vla.data.convert import to_calvin
from vla.data.convert.calvin import Annotation, cut_pieces, without
from vla.data.convert.calvin_faults import find_faults
from vla.data.store import Dataset, DatasetWriter, Segment, check
from vla.data.windows import Windows
from vla.spec import ACTION, ENVIRONMENT_STATE, STATE, Spec, UserError


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    return play(tmp_path_factory.mktemp("play") / "play", 120)


@pytest.fixture(scope="module")
def genuine(played, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calvin") / "task_D_D/training"
    return folder, write_split(folder, played)


@pytest.fixture
def copy(genuine, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(genuine[0], tmp_path / "D/training")


def convert(path, out, **options):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("convert", ["source=calvin", f"path={path}", f"out={out}", "workers=1", "cut=40"])
    try:
        return instantiate(OmegaConf.merge(config, options), _convert_="all")
    except InstantiationException as error:  # Hydra's coat around what the converter raised
        raise error.__cause__ from None


def annotations(folder):
    return np.load(folder / "lang_annotations/auto_lang_ann.npy", allow_pickle=True).item()


def assert_same_frames(folder, frames, keys):
    for number, arrays in frames.items():
        with np.load(folder / f"episode_{number:07d}.npz") as found:
            assert set(found.files) == keys
            for key in keys:
                assert found[key].dtype == arrays[key].dtype
                np.testing.assert_array_equal(found[key], arrays[key])


def test_there_and_back_is_exact(genuine, played, tmp_path):
    folder, frames = genuine
    summary = convert(folder, tmp_path / "zarr", everything=True)
    dataset = check(tmp_path / "zarr")
    assert summary.made == {
        "episodes": dataset.num_episodes, "frames": len(frames), "annotations": len(played.segments),
    }  # fmt: skip
    assert (dict(summary.skipped), list(summary.notes)) == ({}, [])
    assert dataset.num_episodes > played.num_episodes
    assert dataset.spec == played.spec  # what is trained on one can be used on the other
    np.testing.assert_array_equal(
        dataset.images("wrist", np.arange(len(frames))), played.images("wrist", np.arange(len(frames)))
    )
    for name in (STATE, ACTION, ENVIRONMENT_STATE):
        np.testing.assert_allclose(dataset.vectors[name], played.vectors[name], atol=1e-6)
    assert set(dataset.scenes) == {"D"}
    batch = Windows(dataset, batch_size=2, history=2).batch(0)
    assert batch[ACTION].shape == (2, 2, 10, 7)

    summary = to_calvin.convert(tmp_path / "zarr", tmp_path / "back", workers=1)
    assert (summary.made["recordings"], summary.made["frames"], summary.notes) == (played.num_episodes, len(frames), [])
    assert_same_frames(tmp_path / "back", frames, set(frames[FIRST]))
    for name in ("ep_start_end_ids.npy", "ep_lens.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "back" / name), np.load(folder / name))
    for name in ("statistics.yaml", ".hydra/merged_config.yaml"):
        assert (tmp_path / "back" / name).read_text() == (folder / name).read_text()
    scenes = [np.load(f / "scene_info.npy", allow_pickle=True).item() for f in (folder, tmp_path / "back")]
    assert scenes[0] == scenes[1]
    ours, theirs = annotations(tmp_path / "back"), annotations(folder)
    np.testing.assert_array_equal(ours["language"].pop("emb"), theirs["language"].pop("emb"))
    assert ours == theirs


def test_own_play_becomes_calvins(played, tmp_path):
    to_calvin.convert(played.path, tmp_path / "D/training", workers=1)
    convert(tmp_path / "D/training", tmp_path / "zarr")
    dataset = Dataset(tmp_path / "zarr")
    for name in (STATE, ACTION, ENVIRONMENT_STATE):
        np.testing.assert_array_equal(dataset.vectors[name], played.vectors[name])
    assert [dataset.instructions[s["instruction"]] for s in dataset.segments] == [
        played.instructions[s["instruction"]] for s in played.segments
    ]
    last = int(played.episode_ends[0]) - 1
    with np.load(tmp_path / "D/training/episode_0000005.npz") as five:
        np.testing.assert_array_equal(five["actions"], played.vectors[STATE][6, [0, 1, 2, 3, 4, 5, 14]].astype(float))
    with np.load(tmp_path / f"D/training/episode_{last:07d}.npz") as end:
        pose, action = played.vectors[STATE][last].astype(float), played.vectors[ACTION][last].astype(float)
        np.testing.assert_allclose(end["actions"][:3], pose[:3] + 0.02 * action[:3])


def test_damaged_frames_are_named_and_the_rest_is_converted(copy, genuine, tmp_path, monkeypatch, capsys):
    def name(i):
        return f"episode_{FIRST + i:07d}.npz"

    def spoil(i, **changes):
        with np.load(copy / name(i)) as file:
            arrays = dict(file) | changes
        np.savez_compressed(copy / name(i), **{key: value for key, value in arrays.items() if value is not None})

    data = (copy / name(3)).read_bytes()
    (copy / name(3)).write_bytes(data[: len(data) // 2])
    (copy / name(10)).unlink()
    spoil(20, rel_actions=None)
    spoil(30, robot_obs=np.zeros(15, np.float32))
    spoil(40, scene_obs=np.full(24, np.nan))
    spoil(41, rgb_static=np.zeros((100, 100, 3), np.uint8))
    spoil(42, robot_obs=np.array([{"evil": 1}] * 15, dtype=object))
    (copy / name(60)).write_bytes(b"")
    flipped = bytearray(data)
    flipped[400:420] = bytes(20)
    (copy / name(61)).write_bytes(flipped)

    arguments = ["source=calvin", f"path={copy}", f"out={tmp_path / 'zarr'}", "workers=1", f"hydra.run.dir={tmp_path / 'h'}"]
    monkeypatch.setattr(sys, "argv", ["vla-convert", *arguments])
    with pytest.raises(SystemExit) as ended:
        vla.commands.convert.main()
    assert ended.value.code == 1
    told = capsys.readouterr().out
    bad = (3, 10, 20, 30, 40, 41, 42, 60, 61)
    for i, fault in zip(bad, ("cannot be read", "is missing", "lacks rel_actions", "float32", "not finite", "(100, 100, 3)",
                              "cannot be read", "cannot be read", "cannot be read"), strict=True):  # fmt: skip
        assert any(name(i) in line and fault in line for line in told.splitlines()), (i, told)
    dataset = check(tmp_path / "zarr")
    frames = len(genuine[1])
    assert dataset.num_frames == frames - len(bad)
    lengths = dataset.episode_ends - dataset.episode_starts
    numbers = np.concatenate([np.arange(s, s + n) for s, n in zip(dataset.episode_seeds, lengths, strict=True)])
    assert set(range(FIRST, FIRST + frames)) - set(numbers.tolist()) == {FIRST + i for i in bad}
    windows = annotations(copy)["info"]["indx"]
    cut = {n for n, (start, end) in enumerate(windows) if any(start <= FIRST + i < end for i in bad)}
    assert cut
    assert all(f"lang_annotations {n}" in told for n in cut)
    assert len(dataset.segments) == len(windows) - len(cut)

    shutil.copy(genuine[0] / name(3), copy)  # mended, and run again
    with pytest.raises(SystemExit):
        vla.commands.convert.main()
    assert Dataset(tmp_path / "zarr").num_frames == frames - len(bad) + 1
    assert name(3) not in capsys.readouterr().out


def test_damaged_tables(copy, genuine, tmp_path):
    ends = np.load(copy / "ep_start_end_ids.npy")
    rows = [*ends.tolist(), ends[0].tolist(), [FIRST + 5, FIRST + 9], [-4, -1], [9, 3]]
    np.save(copy / "ep_start_end_ids.npy", np.array(rows))
    table = annotations(copy)
    table["info"]["indx"][0] = (1, 20)
    np.save(copy / "lang_annotations/auto_lang_ann.npy", table)
    np.save(copy / "scene_info.npy", np.array([os.getcwd], dtype=object), allow_pickle=True)
    skipped = convert(copy, tmp_path / "a").skipped
    assert {k: v.split(" (")[0] for k, v in skipped.items()} == {
        **{f"ep_start_end_ids.npy row {len(ends) + i}": "has frames of another row" for i in (0, 1)},
        **{f"ep_start_end_ids.npy row {len(ends) + i}": "is no range of frames" for i in (2, 3)},
        "lang_annotations 0": "is not inside a recording",
        str(copy / "scene_info.npy"): "tells no scenes",
    }
    assert "posix.getcwd" in skipped[str(copy / "scene_info.npy")]
    assert Dataset(tmp_path / "a").num_frames == len(genuine[1])

    (copy / "scene_info.npy").unlink()
    table["info"]["indx"].pop()
    np.save(copy / "lang_annotations/auto_lang_ann.npy", table)
    summary = convert(copy, tmp_path / "b")
    assert "windows" in summary.skipped["lang_annotations/auto_lang_ann.npy"]
    assert any("nothing tells the scene" in note for note in summary.notes)
    assert "climbs out" in convert(copy, tmp_path / "c", language="../..").skipped["../../auto_lang_ann.npy"]
    (copy / "ep_start_end_ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"ep_start_end_ids.npy cannot be read"):
        convert(copy, tmp_path / "d")
    with pytest.raises(UserError, match="is not a folder"):
        convert(copy / "none", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_known_faults_are_found(copy, genuine, tmp_path):
    count = len(genuine[1])
    other = copy.parent / "validation"
    other.mkdir()
    np.save(other / "ep_start_end_ids.npy", np.array([[0, FIRST], [FIRST + count - 2, FIRST + count + 50]]))
    table = annotations(copy)
    for column in (table["language"]["ann"], table["language"]["task"], table["info"]["indx"]):
        column.extend(column[:])
    table["language"]["emb"] = np.concatenate([table["language"]["emb"]] * 2)
    np.save(copy / "lang_annotations/auto_lang_ann.npy", table)
    notes = " ".join(convert(copy, tmp_path / "zarr", scenes={"B": [FIRST, FIRST + count - 10]}).notes)
    assert f"3 frames are also in validation ({FIRST}, {FIRST + count - 2}, {FIRST + count - 1})" in notes
    half = len(table["language"]["ann"]) // 2
    assert f"{half} of {2 * half} annotations repeat" in notes
    assert "100% of the annotated frames have more than one annotation" in notes
    assert "1 recordings are not wholly inside one scene" in notes


@pytest.mark.parametrize(("scene", "slot"), [("A", 2), ("D", 0)])
def test_a_wrong_scene_is_found_by_touch_and_by_blocks(tmp_path, played, scene, slot):
    """The hand works B's button and switch; the red block is the one that moves."""
    spec = Spec(state=played.spec.state, action=played.spec.action, environment_state=played.spec.environment_state)
    frames = {STATE: np.zeros((60, 15)), ACTION: np.zeros((60, 7)), ENVIRONMENT_STATE: np.zeros((60, 24))}
    frames[STATE][:30, 0], frames[STATE][30:, 0] = 0.28, -0.31
    frames[ENVIRONMENT_STATE][:, 2] = np.where(np.arange(60) < 30, np.arange(60) % 10 / 1000, 0)
    frames[ENVIRONMENT_STATE][30:, 3] = np.arange(30) / 300
    frames[ENVIRONMENT_STATE][:, 6 + 6 * slot] = np.arange(60) / 100
    labels = [Segment(10 * i, 10 * i + 10, "push_red_block_right", "push it") for i in range(6)]
    with DatasetWriter(tmp_path / "d", spec, {}) as writer:
        writer.append_episode({k: v.astype(np.float32) for k, v in frames.items()}, labels, scene=scene)
    notes = find_faults(tmp_path, Dataset(tmp_path / "d"), [(0, 60)], [], {scene: (0, 59)})
    assert notes == [
        f"frames said to be of scene {scene}: its button is worked at x = 0.28 m and its switch is worked at x = -0.31 m, "
        "as in B"
    ]


def test_a_killed_conversion_goes_on(genuine, tmp_path):
    folder, frames = genuine
    out = tmp_path / "zarr"
    arguments = ["source=calvin", f"path={folder}", f"out={out}", "cut=20", "workers=2", f"hydra.run.dir={tmp_path / 'h'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vla.commands.convert", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not (out / "part-001/observation.images.static/c").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert sum(d.num_frames for d in opened(out)) < len(frames)
    convert(folder, out, cut=20)
    dataset = check(out)
    lengths = dataset.episode_ends - dataset.episode_starts
    numbers = [n for s, count in zip(dataset.episode_seeds, lengths, strict=True) for n in range(s, s + count)]
    assert sorted(numbers) == sorted(frames)
    to_calvin.convert(out, tmp_path / "back", workers=1)
    keys = {"rgb_static", "rgb_gripper", "robot_obs", "scene_obs", "actions", "rel_actions"}
    assert_same_frames(tmp_path / "back", frames, keys)
    with pytest.raises(UserError, match="begun with"):
        convert(folder, out, cut=21)

    whole = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "back").glob("*.npz")}
    lost = f"episode_{FIRST + 30:07d}.npz"
    (tmp_path / "back" / lost).unlink()
    to_calvin.convert(out, tmp_path / "back", workers=1)
    again = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "back").glob("*.npz")}
    assert again.keys() == whole.keys()
    assert sum(again[name] != whole[name] for name in whole) < len(whole)


def test_a_conversion_killed_while_it_began_goes_on(genuine, tmp_path, monkeypatch):
    folder, frames = genuine

    def killed(writer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "_create_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(folder, tmp_path / "zarr")
    assert not (tmp_path / "zarr/part-000/episode").exists()
    convert(folder, tmp_path / "zarr")
    assert check(tmp_path / "zarr").num_frames == len(frames)


def opened(out):
    for part in sorted(out.glob("part-*")):
        try:
            yield Dataset(part)
        except UserError:
            continue


def test_cuts_keep_annotations_whole():
    notes = [Annotation(8, 14, "a", "", 0), Annotation(13, 25, "b", "", 1), Annotation(40, 45, "c", "", 2)]
    pieces = cut_pieces([(0, 60), (60, 65)], notes, {"D": (0, 29), "A": (30, 100)}, 10)
    assert [(p.start, p.end, p.scene, p.recording) for p in pieces] == [
        (0, 25, "D", 0), (25, 30, "D", 0), (30, 40, "A", 0), (40, 50, "A", 0), (50, 60, "A", 0), (60, 65, "A", 60),
    ]  # fmt: skip
    left = without(pieces, [(0, 25), (27, 28), (38, 50)])
    assert [(p.start, p.end) for p in left] == [(25, 27), (28, 30), (30, 38), (50, 60), (60, 65)]


def test_what_calvin_cannot_hold_is_refused(tmp_path):
    spec = Spec(cameras={"static": (4, 4)})
    with DatasetWriter(tmp_path / "video", spec, {}) as writer:
        writer.append_episode({"observation.images.static": np.zeros((3, 4, 4, 3), np.uint8)}, [])
    with pytest.raises(UserError, match="CALVIN's format wants"):
        to_calvin.convert(tmp_path / "video", tmp_path / "out")
    assert not (tmp_path / "out").exists()
