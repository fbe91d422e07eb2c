"""vla-pretrain and vla-train from their command lines, with a tiny GR-1 on a tiny dataset."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla.checkpoint import load_policy
from vla.commands.pretrain import main as pretrain
from vla.commands.train import main as train
from vla.data.store import DatasetWriter, Segment
from vla.spec import Entry, Spec

STATE = (*(Entry(f"tcp_{axis}", "m") for axis in "xyz"), *(Entry(f"s{i}", "1") for i in range(3, 15)))
ACTION = (*(Entry(f"a{i}", "1", -1.0, 1.0) for i in range(6)), Entry("gripper", "1", -1.0, 1.0))
ROBOT = Spec(
    {"static": (64, 64), "wrist": (64, 64)}, STATE, ACTION, (), "relative_pose", 30.0, "test",
    {"static": (1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0)},
)  # fmt: skip
VIDEO = Spec({"static": (64, 64)}, frame="test")
TINY = [
    "policy.width=32",
    "policy.heads=2",
    "policy.layers=1",
    "policy.vision.channels=[4,4,8,8]",
    "policy.vision.reduced=4",
    "policy.vision.cls_width=16",
    "policy.language=16",
    "policy.resampler.heads=1",
    "policy.resampler.head_width=8",
    "policy.foresight.decoder.width=16",
    "policy.foresight.decoder.heads=2",
    "policy.text.pooling=1",
    "trainer.batch_size=8",
    "trainer.warmup=2",
    "trainer.log_every=2",
    "trainer.save_every=2",
    "trainer.validate_every=4",
    "trainer.validation_batches=1",
    "trainer.picture_every=4",
    "trainer.steps=4",
    "data.holdout=4",
    "trainer.threads=1",
]


def write(path, spec, seed=0):
    random = np.random.default_rng(seed)
    with DatasetWriter(path, spec, {"command": "test"}) as writer:
        for episode in range(4):
            frames = {
                f"observation.images.{c}": random.integers(0, 255, (20, *s, 3), np.uint8) for c, s in spec.cameras.items()
            }
            if spec.action:
                frames["observation.state"] = random.normal(size=(20, 15)).astype(np.float32)
                frames["action"] = random.uniform(-1, 1, (20, 7)).astype(np.float32)
                frames["action"][:, 6] = np.sign(frames["action"][:, 6])
            writer.append_episode(frames, [Segment(0, 20, "", f"do thing {episode % 2}")], seed=episode)
    return path


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "robot", ROBOT)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "video", VIDEO)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a command with the tiny policy and these overrides; gives (status, what it printed, its errors)."""

    def run(main, *overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["command", *TINY, *map(str, overrides)])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        threads = torch.get_num_threads()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            torch.set_num_threads(threads)
        return status, *capsys.readouterr()

    return run


def weights(out):
    return (out / "last" / "model.safetensors").read_bytes()


def test_pretrain_then_train_then_go_on(call, robot, video, tmp_path):
    status, said, _ = call(pretrain, f"data.path={video}", "out=stage1")
    assert status == 0
    assert "policy   GR1Policy" in said
    assert "step 4/4  100.0 %" in said
    assert "held out" in said
    assert (tmp_path / "stage1/first_batch.png").exists()
    assert (tmp_path / "stage1/foresight/00000004.png").exists()

    stage2 = (train, f"data.path={robot}", "init_from=stage1/last", "out=stage2")
    status, said, _ = call(*stage2)
    assert status == 0
    assert "stage1/last" in said
    policy = load_policy(tmp_path / "stage2/last")
    observation = {
        "observation.images.static": np.zeros((2, 64, 64, 3), np.uint8),
        "observation.images.wrist": np.zeros((2, 64, 64, 3), np.uint8),
        "observation.state": np.zeros((2, 15), np.float32),
        "task": ["do thing 0", "do thing 1"],
    }
    actions, _ = policy.act(observation, policy.begin([0, 1]))
    assert actions.shape == (2, 10, 7)
    training = json.loads((tmp_path / "stage2/last/training.json").read_text())
    assert training["step"] == 4
    assert len(training["data"]["digest"]) == 16
    assert "do thing 0" in training["instructions"]

    status, said, _ = call(*stage2, "trainer.steps=6")
    assert status == 0
    assert "going on from stage2/checkpoint-00000004" in said
    assert json.loads((tmp_path / "stage2/last/training.json").read_text())["step"] == 6


def test_a_run_that_was_cut_goes_on_bit_by_bit(call, robot, tmp_path):
    options = (train, f"data.path={robot}", "trainer.validate_every=null", "trainer.keep=9", "trainer.precision=bf16")
    assert call(*options, "out=whole")[0] == 0
    assert call(*options, "out=cut")[0] == 0
    for name in ("checkpoint-00000004", "last"):
        (tmp_path / "cut" / name).rename(tmp_path / f"gone-{name}")
    status, said, _ = call(*options, "out=cut")
    assert status == 0
    assert "going on from cut/checkpoint-00000002" in said
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_mistakes_are_one_sentence_and_leave_nothing(call, robot, video, tmp_path):
    data = f"data.path={robot}"
    assert call(train, data, "out=run", "trainer.picture_every=null")[0] == 0
    other = write(tmp_path / "other", ROBOT, seed=1)
    joints = write(tmp_path / "joints", replace(ROBOT, action_kind="joints"))
    mistakes = {
        (data,): "out has no value",
        ("out=a",): "data.path has no value",
        ("data.path=nowhere", "out=a"): "nowhere",
        (f"data.path={video}", "out=a"): "vla-pretrain",
        (data, "out=a", "trainer.precision=fp8"): "choose auto, bf16 or fp32",
        (data, "out=a", "trainer.minutes=1", "trainer.cpu_seconds=1"): "give one of them",
        (data, "out=a", "trainer.steps=0"): "give a positive number",
        (data, "out=a", "data.segments=some"): "segments is 'some'",
        (data, "out=a", "trainer.speed=9"): "no key 'trainer.speed'",
        (data, "out=a", "init_from=nowhere"): "nowhere",
        (data, "out=a", "init_from=run/last", "policy.width=64"): "has shape",
        (data, "out=a", "init_from=run/last", "init_parts=[model.eyes]"): "has no part 'model.eyes': choose init_parts from",
        (data, "out=a", "init_parts=[model.decoder]"): "give init_from",
        (f"data.path={joints}", "out=a", "init_from=run/last"): "action_kind is 'relative_pose'",
        (data, "out=run", "policy.width=64"): "policy.width was 32",
        (data, "out=run", "seed=1"): "seed was 0",
        (f"data.path={other}", "out=run"): "digest was",
    }
    for overrides, words in mistakes.items():
        status, _, said = call(train, *overrides)
        sentence = [text for text in said.splitlines() if text.startswith("error: ")]
        assert status == 2, overrides
        assert len(sentence) == 1, said
        assert words in sentence[0]
    assert not (tmp_path / "a").exists()


def test_a_dataset_that_cannot_say_where_the_hand_is(call, tmp_path):
    data = write(tmp_path / "blind", replace(ROBOT, projections={}))
    status, _, errors = call(train, f"data.path={data}", "out=run")
    assert status == 2
    assert "policy.augment.swap=0" in errors
    assert call(train, f"data.path={data}", "out=run", "policy.augment.swap=0")[0] == 0
