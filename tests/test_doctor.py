"""vla-doctor names every fault of a dataset, a checkpoint and their meeting, and is content with what is whole."""

import ctypes.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from safetensors.torch import load_file, save_file

from vla import doctor
from vla.commands.doctor import main
from vla.data.writer import DatasetWriter, Segment, part_path

sys.path.append(str(Path(__file__).parent / "data"))
from played import SPEC, episode, write

SHIPPED = Path(__file__).parents[1] / "checkpoints/gr1_small"


def found(steps, kind):
    """The sentences of one kind."""
    return [text for what, text in steps if what == kind]


@pytest.fixture
def shipped(tmp_path):
    return Path(shutil.copytree(SHIPPED, tmp_path / "checkpoint"))


def test_a_whole_dataset_is_fine_and_described(tmp_path):
    write(tmp_path / "d", [200, 150])
    specs = {}
    steps = list(doctor.dataset(str(tmp_path / "d"), specs))
    assert not found(steps, "wrong")
    assert "350 frames and 2 episodes" in found(steps, "fine")[0]
    assert list(specs.values()) == [SPEC]


def test_every_damage_of_every_part_is_told(tmp_path):
    """Not only the first, as when it is opened for training."""
    for part in range(3):
        write(part_path(tmp_path / "d", part), [200, 150])
    for part, place in ((0, 3), (0, 210 * 72), (1, 7)):
        shard = tmp_path / f"d/part-{part:03d}/observation.images.static/c/0/0/0/0"
        content = bytearray(shard.read_bytes())
        content[place] ^= 255
        shard.write_bytes(content)
    (tmp_path / "d/part-002/action/zarr.json").write_text("{")
    specs = {}
    wrong = found(doctor.dataset(str(tmp_path / "d"), specs), "wrong")
    assert len(wrong) == 4
    for words in ("part-000: observation.images.static, episode 0", "part-000: observation.images.static, episode 1"):
        assert any(words in sentence for sentence in wrong)
    assert any("part-001" in sentence for sentence in wrong)
    assert any("part-002: action cannot be read" in sentence for sentence in wrong)
    assert not specs


def test_what_may_not_be_meant_is_noted(tmp_path):
    frames = episode(0, 40)
    frames["action"][5, 1] = -3.5
    frames["observation.images.wrist"][:] = 0
    with DatasetWriter(tmp_path / "d", SPEC, {}) as writer:
        writer.append_episode(frames, [Segment(0, 10, "t", "do it")])
    notes = found(doctor.dataset(str(tmp_path / "d"), {}), "note")
    assert any("75 % of the frames are in no segment" in note for note in notes)
    assert any("action[1] dy is outside [-1, 1] in 1 frames, at most -3.5" in note for note in notes)
    assert any("camera 'wrist' shows one colour" in note for note in notes)
    assert not any("static" in note for note in notes)


def test_what_is_not_there_is_wrong(tmp_path):
    assert "there is no dataset" in found(doctor.dataset(f"{tmp_path}/none", {}), "wrong")[0]
    assert "has no model.safetensors" in found(doctor.checkpoint(f"{tmp_path}/none", {}, {}), "wrong")[0]


def test_the_shipped_checkpoint_is_fine_and_broken_ones_are_not(shipped):
    steps = list(doctor.checkpoint(str(shipped), {}, {}))
    assert [kind for kind, _ in steps] == ["fine", "fine"]
    assert "chunk of 10 x 7" in steps[1][1]

    weights = load_file(shipped / "model.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point() and value.numel() > 1)
    weights[name].view(-1)[1] = np.nan
    save_file(weights, shipped / "model.safetensors")
    (wrong,) = found(doctor.checkpoint(str(shipped), {}, {}), "wrong")
    assert f"{name} (1 in all) is not finite" in wrong

    (shipped / "model.safetensors").write_bytes(b"short")
    (wrong,) = found(doctor.checkpoint(str(shipped), {}, {}), "wrong")
    assert "model.safetensors" in wrong
    assert "cannot be read" in wrong


def test_specs_that_differ_are_wrong_where_they_meet(shipped):
    specs = {}
    list(doctor.checkpoint(str(shipped), {}, specs))
    same = {**specs, "the world": next(iter(specs.values()))}
    assert [kind for kind, _ in doctor.meetings(same)] == ["fine"]
    text = (shipped / "spec.json").read_text()
    data = json.loads(text)
    data["action"][2]["unit"] = "m"
    (shipped / "spec.json").write_text(json.dumps(data))
    list(doctor.checkpoint(str(shipped), {}, specs))
    (wrong,) = found(doctor.meetings({**same, **specs}), "wrong")
    assert "action[2]" in wrong
    assert "unit='m'" in wrong


def test_the_machine_is_described_and_what_lacks_is_told(monkeypatch: pytest.MonkeyPatch):
    steps = list(doctor.machine())
    assert any("cores" in text for text in found(steps, "fine"))
    assert any("asks for are there in fitting versions" in text for text in found(steps, "fine"))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr("importlib.metadata.requires", lambda package: ["numpy<1", "no-such-package>=3", "x ; extra == 'y'"])
    steps = list(doctor.machine())
    assert any("no libEGL" in text for text in found(steps, "note"))
    assert [text.split(":")[0].split(", not")[0] for text in found(steps, "wrong")] == [
        f"package numpy is {np.__version__}",
        "package no-such-package is missing (>=3)",
    ]


def test_the_command_looks_at_all_and_its_status_tells(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d", [30])
    cameras = ["env.world.cameras.static=[24,24]", "~env.world.cameras.wrist"]
    monkeypatch.setattr("sys.argv", ["vla-doctor", f"path={tmp_path}/d", "checkpoint=nowhere", *cameras])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "fine:  the world envs.playtable.make starts; a control step with static 24x24" in said
    assert "note:  dataset" in said  # it has a camera that the world has not
    assert "wrong: 'nowhere' has no model.safetensors" in said
    assert said.splitlines()[-1] == "1 wrong"


def test_a_world_that_cannot_be_made_is_wrong():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("doctor", overrides=["env.world.scene=E"])
    assert found(doctor.world(config.env.world, {}), "wrong") == ["unknown scene 'E': the playtable has scenes A, B, C, D."]
