"""Tokenizer, then the three stages, from their command lines on data made here; what each hands on, exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_f1 import SENTENCES, SPEC, pictures, take

from vla.checkpoint import load_policy, read_checkpoint
from vla.commands.pretrain import main as pretrain
from vla.commands.train import main as train
from vla.data.store import DatasetWriter, Segment

ROBOT = replace(SPEC, cameras={"static": (16, 16), "wrist": (16, 16)})
VIDEO = replace(ROBOT, cameras={"static": (16, 16)}, state=(), action=(), action_kind="none")
RUN = [
    "trainer.batch_size=4", "trainer.warmup=2", "trainer.log_every=2", "trainer.save_every=2", "trainer.steps=2",
    "trainer.validate_every=2", "trainer.validation_batches=1", "trainer.threads=1", "trainer.precision=fp32", "data.holdout=2",
]  # fmt: skip
TOKENIZER = [
    "policy.tokenizer.size=16", "policy.tokenizer.unshuffle=2", "policy.tokenizer.channels=[4,8]",
    "policy.tokenizer.decoder_channels=[4,8]", "policy.tokenizer.groups=2", "policy.tokenizer.latent=4",
    "policy.tokenizer.scales=[1,2,4]",
]  # fmt: skip
CODES = ["policy.tokenizer.codes=16"]
POLICY = [
    *TOKENIZER,
    "policy.size=16", "policy.layers=2", "policy.heads=2", "policy.head_width=4", "policy.chunk=4", "policy.augment.swap=0",
    "policy.understanding.width=8", "policy.understanding.hidden=8", "policy.understanding.language=8",
    "policy.understanding.text.pooling=1", "policy.understanding.vision.channels=[4,4,4,4]",
    "policy.understanding.vision.cls_width=8", "policy.understanding.vision.reduced=2",
    "policy.understanding.resampler.heads=1", "policy.understanding.resampler.head_width=4",
    "policy.generation.width=8", "policy.generation.hidden=8", "policy.action.width=8", "policy.action.hidden=8",
    "policy.foresight.history_scales=2", "policy.micro_batch=2",
]  # fmt: skip
FEW = "policy.foresight.scales=2"  # of this tokenizer's three, as the experiments have four of seven


def write(path, spec):
    with DatasetWriter(path, spec, {"command": "test"}) as writer:
        for episode in range(2):
            frames = {f"observation.images.{c}": pictures(16, 7 * episode + i).numpy() for i, c in enumerate(spec.cameras)}
            random = np.random.default_rng(episode)
            if spec.action:
                frames["observation.state"] = random.normal(size=(16, 15)).astype(np.float32)
                frames["action"] = random.uniform(-1, 1, (16, 7)).astype(np.float32)
            writer.append_episode(frames, [Segment(0, 12, "", SENTENCES[episode])], seed=episode)
    return path


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run a command with these overrides; gives (status, what it printed, its errors)."""
    folder = tmp_path_factory.mktemp("stages")
    write(folder / "robot", ROBOT)
    write(folder / "video", VIDEO)

    def run(capsys, main, *overrides):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.argv", ["command", *RUN, *overrides])
            try:
                main()
                status = 0
            except SystemExit as stop:
                status = stop.code
        return status, *capsys.readouterr()

    run.folder = folder
    return run


def weights(call, name: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(call.folder / name / "last").tensors()


def begun(call, name: str, capsys, main, *overrides) -> dict[str, torch.Tensor]:
    """The weights with which a run begins: those after one step at a learning rate of nothing."""
    status, said, errors = call(capsys, main, *overrides, f"out={name}", "trainer.steps=1", "trainer.learning_rate=0")
    assert status == 0, said + errors
    return weights(call, name)


def test_a_tokenizer_of_two_cameras_serves_video_of_one(call, capsys):
    asked = ("policy=f1_tokenizer", "data=play", *TOKENIZER, *CODES, "data.path=robot", "data.segments=all", "out=both")
    status, _, errors = call(capsys, pretrain, *asked)
    assert status == 0, errors
    start = begun(
        call, "begin0", capsys, pretrain, "experiment=f1_stage1", *POLICY, *CODES, "data.path=video", "init_from=both/last"
    )
    tokens = weights(call, "both")
    assert all(torch.equal(start[k], tokens[k]) for k in tokens)
    assert not any(".wrist." in k for k in start)


def test_from_tokenizer_to_policy(call, capsys):
    status, said, errors = call(capsys, pretrain, "policy=f1_tokenizer", *TOKENIZER, *CODES, "data.path=video", "out=tokens")
    assert status == 0, errors
    assert all(name in said for name in ("psnr", "ssim", "use", "held out"))
    tokens = weights(call, "tokens")

    stage1 = ("experiment=f1_stage1", *POLICY, *CODES, "data.path=video", "init_from=tokens/last")
    start = begun(call, "begin1", capsys, pretrain, *stage1)
    assert {k for k in start if k.startswith("tokenizer.")} == set(tokens)
    assert all(torch.equal(start[k], tokens[k]) for k in tokens)
    status, said, errors = call(capsys, pretrain, *stage1, "out=stage1")
    assert status == 0, errors
    first = weights(call, "stage1")
    moved = {k.split(".")[1] for k in first if not torch.equal(first[k], start[k])}
    assert moved == {"generation"}  # understanding and tokenizer stay as they are
    assert (call.folder / "stage1/foresight/00000002.png").exists()

    stage2 = ("experiment=f1_stage2", *POLICY, *CODES, FEW, "data.path=robot", "init_from=stage1/last")
    start = begun(call, "begin2", capsys, train, *stage2)
    assert all(torch.equal(start[k], first[k]) for k in first)
    new = set(start) - set(first)
    assert {k.split(".")[1] for k in new} == {"action", "understanding"}
    wrist = "model.understanding.vision.wrist.convs.0.weight"
    assert torch.equal(start[wrist], first[wrist.replace("wrist", "static")])
    status, said, errors = call(capsys, train, *stage2, "out=stage2")
    assert status == 0, errors
    second = weights(call, "stage2")
    assert {k.split(".")[1] for k in second if not torch.equal(second[k], start[k])} == {
        "understanding",
        "generation",
        "action",
    }

    stage3 = ("experiment=f1_stage3", *POLICY, *CODES, FEW, "data.path=robot", "init_from=stage2/last")
    start = begun(call, "begin3", capsys, train, *stage3)
    assert set(start) == set(second)
    statistics = {"model.action.state_token.mean", "model.action.state_token.std"}  # of its own data
    assert all(torch.equal(start[k], second[k]) for k in set(second) - statistics)

    policy = load_policy(call.folder / "stage2/last")
    observation = {
        **{f"observation.images.{c}": pictures(2).numpy() for c in ROBOT.cameras},
        "observation.state": np.zeros((2, 15), np.float32),
        "task": list(SENTENCES[:2]),
    }
    actions, memory = policy.act(observation, policy.begin([0, 1]))
    assert actions.shape == (2, 4, 7)
    assert policy.foresee(memory)["static"].shape == (2, 16, 16, 3)
    again = load_policy(call.folder / "stage2/last")
    np.testing.assert_array_equal(again.act(observation, again.begin([0, 1]))[0], actions)
    fewer = load_policy(call.folder / "stage2/last", flow={"steps": 1})
    assert fewer.steps == 1
    one = take(observation, [1])
    np.testing.assert_array_equal(again.act(one, again.begin([1]))[0], actions[1:])


def test_switches_and_mistakes(call, capsys):
    robot = (*POLICY, "data.path=robot")
    frozen = ("policy=f1_small", *robot, "tokenizer@policy.tokenizer=vae_small")
    status, _, errors = call(capsys, train, *frozen, FEW, "out=untrained")
    assert status == 2
    assert "tokenizer has not been trained" in errors
    assert call(capsys, train, *frozen, "policy.foresight.scales=0", "out=reactive")[0] == 0
    status, _, errors = call(capsys, pretrain, "policy=f1_tokenizer", "tokenizer@policy.tokenizer=vae_small", *TOKENIZER,
                             "data.path=robot", "out=vae")  # fmt: skip
    assert status == 0, errors
    assert call(capsys, train, *frozen, FEW, "init_from=vae/last", "out=continuous")[0] == 0
    status, _, errors = call(capsys, pretrain, "experiment=f1_stage1", "data.path=video", "out=nothing")
    assert status == 2
    assert "give that run's checkpoint as init_from" in errors
