"""`vla-train adapter=lora`, with tiny GR-1s and F1s: only small matrices move, and checkpoints are like any other."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

sys.path.append(str(Path(__file__).parents[1] / "policies" / "gr1"))
sys.path.append(str(Path(__file__).parents[1] / "policies" / "f1"))
import small_f1
import small_gr1

from vla.checkpoint import build_policy, load_policy, read_checkpoint, save_checkpoint
from vla.commands.train import main as train
from vla.data.store import Dataset, DatasetWriter, Segment
from vla.spec import UserError
from vla.training.lora import LoRA
from vla.training.setup import build

SPEC = small_gr1.SPEC  # small_f1's is the same
SMALL = {"gr1": small_gr1, "f1": small_f1}
CONFIGS = {name: OmegaConf.merge(small.config(), {"augment": {"swap": 0.0}}) for name, small in SMALL.items()}
QUICK = [
    "adapter=lora", "data.path=data", "data.holdout=2", "trainer.batch_size=4", "trainer.warmup=1", "trainer.log_every=2",
    "trainer.save_every=2", "trainer.steps=4", "trainer.validate_every=2", "trainer.validation_batches=1",
    "trainer.picture_every=2", "trainer.keep=9", "trainer.threads=1", "trainer.precision=fp32", "trainer.learning_rate=0.01",
]  # fmt: skip
# CONFIGS["gr1"] for the command line.
NUMBERS = [
    f"policy.{key}"
    for key in (
        "size=16", "width=16", "layers=2", "heads=2", "language=8", "chunk=4", "vision.channels=[8,8,8,8]", "vision.reduced=4",
        "state=rotation6d",
        "vision.cls_width=16", "foresight.fraction=1", "foresight.queries=2", "foresight.decoder.width=16",
        "foresight.decoder.heads=2", "cameras.wrist.pad=1", "augment.swap=0",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset `data` and checkpoints `gr1` and `f1`, whose normalisation is not that of the data."""
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    with DatasetWriter(folder / "data", SPEC, {"command": "test"}) as writer:
        for episode in range(2):
            frames = {
                f"observation.images.{c}": random.integers(0, 255, (16, *s, 3), np.uint8) for c, s in SPEC.cameras.items()
            }
            frames["observation.state"] = random.normal(3, 1, size=(16, 15)).astype(np.float32)
            frames["action"] = random.uniform(-1, 1, (16, 7)).astype(np.float32)
            writer.append_episode(frames, [Segment(0, 16, "", small_gr1.SENTENCES[episode])], seed=episode)
    statistics = {"observation.state": {"mean": np.full(15, 0.5), "std": np.full(15, 2.0)}}
    for name, small in SMALL.items():
        policy = build_policy(CONFIGS[name], SPEC, statistics)
        policy.load_state_dict({k: v for k, v in small.policy().state_dict().items() if ".state_token." not in k}, False)
        save_checkpoint(folder / name, policy, CONFIGS[name], {"step": 9})
    return folder


@pytest.fixture(autouse=True)
def in_a_folder(prepared, tmp_path, monkeypatch):
    """With a copy of what is prepared."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def trainer_of(name: str, out: str, *overrides: str):
    """The Trainer that `vla-train` would build for the tiny policy."""
    with initialize_config_module("conf", version_base="1.3"):
        plain = OmegaConf.to_container(compose("train", overrides=[*QUICK, f"out={out}", *overrides]))
    return build(OmegaConf.create({**plain, "policy": CONFIGS[name]}), actions=True)


def cut(out: str, step: int) -> None:
    """Leave of a run what there was after `step` steps."""
    for folder in Path(out).glob("checkpoint-*"):
        if int(folder.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(folder)


@pytest.mark.parametrize("name", SMALL)
def test_only_matrices_move_and_the_checkpoint_is_an_ordinary_one(name, capsys):
    trainer = trainer_of(name, "run", f"init_from={name}")
    assert "LoRA of rank 1, alpha 2, in " in capsys.readouterr().out
    begin = read_checkpoint(name).tensors()
    before = {k: v.clone() for k, v in trainer.policy.state_dict().items()}
    trainer.fit()
    moved = {k for k, v in trainer.policy.state_dict().items() if not torch.equal(v, before[k])}
    matrices = {k for k, p in trainer.policy.named_parameters() if p.requires_grad}
    assert moved == matrices
    assert all(".lora_A." in k or ".lora_B." in k for k in moved)
    checkpoint = read_checkpoint("run/last")
    after = checkpoint.tensors()
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in begin.items()}
    assert dict(checkpoint.config) == dict(CONFIGS[name])
    layers = {k.split(".lora_")[0] + ".weight" for k in matrices}
    assert {k for k in after if not torch.equal(after[k], begin[k])} == layers
    loaded, observation = load_policy("run/last"), small_gr1.observation(3)
    trainer.policy.eval()
    if hasattr(trainer.policy, "learnt"):
        trainer.policy.learnt(checkpoint.training["instructions"])  # as whoever loads the checkpoint tells it
    with trainer.ema.applied():
        adapted, _ = trainer.policy.act(observation, trainer.policy.begin(range(3)))
    actions, _ = loaded.act(observation, loaded.begin(range(3)))
    np.testing.assert_allclose(actions, adapted, atol=1e-5)
    first = load_policy(name)
    assert np.abs(actions - first.act(observation, first.begin(range(3)))[0]).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_was_cut_goes_on_bit_by_bit_without_what_it_began_from(name, capsys):
    options = (f"init_from={name}", "adapter.dropout=0.2", "adapter.layers=all")
    trainer_of(name, "whole", *options).fit()
    trainer_of(name, "cut", *options).fit()
    cut("cut", 2)
    shutil.rmtree(name)
    capsys.readouterr()
    trainer_of(name, "cut", *options).fit()
    assert "going on from cut/checkpoint-00000002" in capsys.readouterr().out
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (Path("cut/last") / file).read_bytes() == (Path("whole/last") / file).read_bytes()
    cut("cut", 2)
    shutil.rmtree("cut/base")
    with pytest.raises(UserError, match="cut/base, the policy that is adapted, is gone"):
        trainer_of(name, "cut", *options)
    with pytest.raises(UserError, match=r"adapter\.rank was 1 when the run"):
        trainer_of(name, "whole", *options, "adapter.rank=2")


def test_only_averages_of_the_matrices_are_kept_beside_the_weights():
    trainer_of("gr1", "run", "init_from=gr1").fit()
    kept = read_checkpoint("run/last").tensors("optimizer")
    assert {k.split(".")[0] for k in kept} == {"raw", "average", "optimizer", "buffer"}
    assert all(".lora_" in k for k in kept if not k.startswith("buffer."))
    statistics = "model.state_token.mean"
    assert read_checkpoint("run/last").tensors()[statistics].tolist() == [0.5] * 15  # as it was trained, not of the new data
    assert Dataset("data").statistics["observation.state"]["mean"][0] > 2
    assert json.loads(Path("run/base/training.json").read_text())["from"] == "gr1"


@pytest.mark.parametrize("name", ["gr1_small", "gr1_medium", "gr1", "f1_small", "f1_medium", "f1"])
def test_under_one_percent_of_every_size(name):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=[f"policy={name}", "adapter=lora"])
    part = {"gr1": "vision", "f1": "understanding"}.get(name)
    if part:
        config.policy[part].weights = None
    with torch.device("meta"):
        policy = build_policy(OmegaConf.create(OmegaConf.to_container(config.policy)), SPEC)
    whole = sum(p.numel() for p in policy.parameters())
    instantiate(config.adapter).inject(policy)
    assert 0 < sum(p.numel() for p in policy.parameters() if p.requires_grad) < 0.01 * whole


def test_layers_are_chosen_by_the_parts_of_their_names():
    def adapted(config, *layers):
        policy = build_policy(config, SPEC)
        LoRA(2, 2.0, 0.0, layers).inject(policy)
        return {k.split(".lora_")[0] for k, p in policy.named_parameters() if p.requires_grad}

    trunk = {f"model.trunk.blocks.{i}.{layer}" for i in range(2) for layer in ("attention.qkv", "attention.out", "up", "down")}
    gr1, f1 = CONFIGS["gr1"], OmegaConf.merge(CONFIGS["f1"], {"trained": ["action"]})
    assert adapted(gr1, "trunk") == trunk
    assert adapted(gr1, "trunk.blocks.0", "arm") == {n for n in trunk if "blocks.0" in n} | {"head.arm"}
    assert {n.split(".")[-1] for n in adapted(gr1, "qkv", "q")} == {"qkv", "q"}
    acting = adapted(f1, "q_proj", "leave")
    assert acting == {"model.action.layers.0.self_attn.q_proj", "model.action.layers.1.self_attn.q_proj", "model.action.leave"}


def test_mistakes_are_told_in_one_sentence(monkeypatch, capsys):
    mistakes = {
        (): r"init_from is null: add init_from=<checkpoint>",
        ("init_from=gr1", "adapter.rank=0"): r"adapter\.rank is 0",
        ("init_from=gr1", "adapter.rank=1.5"): r"adapter\.rank=1\.5 is a number",
        ("init_from=gr1", "adapter.alpha=0"): r"adapter\.alpha is 0",
        ("init_from=gr1", "adapter.dropout=1"): r"adapter\.dropout is 1",
        ("init_from=gr1", "adapter.layers=qkv"): r"adapter\.layers is 'qkv'",
        ("init_from=gr1", "adapter.layers=[]"): r"adapter\.layers is \[\]",
        ("init_from=gr1", "adapter.layers=[qkv,q_proj]"): r"'q_proj'.* no layer that GR1Policy trains.*qkv",
        ("init_from=nowhere",): "nowhere",
    }
    for overrides, words in mistakes.items():
        monkeypatch.setattr("sys.argv", ["vla-train", *QUICK, "out=a", *overrides, *NUMBERS])
        with pytest.raises(SystemExit) as stop:
            train()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 2
        assert len(errors) == 1
        assert re.search(words, errors[0]), errors
    assert not Path("a").exists()


def test_what_the_checkpoint_lacks_is_refused():
    video = replace(SPEC, state=(), action=(), action_kind="none")
    save_checkpoint("video", build_policy(CONFIGS["gr1"], video), CONFIGS["gr1"], {})
    with pytest.raises(UserError, match=r"checkpoint video lacks 'head\..*' \(\d+ in all\)"):
        trainer_of("gr1", "a", "init_from=video")


def test_peft_is_imported_only_when_it_is_used():
    code = (
        "import sys, vla.training.setup, vla.training.lora, policies.gr1.policy, envs.playtable; print('peft' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
