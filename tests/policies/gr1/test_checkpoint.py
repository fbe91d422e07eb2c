"""Checkpoints, on a real policy."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from small_gr1 import SPEC, VIDEO, config, observation, policy

from vla.checkpoint import build_policy, load_matching, load_policy, read_checkpoint, save_checkpoint
from vla.spec import UserError


@pytest.fixture
def saved(tmp_path):
    net = policy(seed=3)
    extra = {"optimizer": {"step": torch.tensor([5])}}
    return net, save_checkpoint(tmp_path / "run" / "last", net, config(), {"step": 7, "data": "abc"}, extra)


def test_a_loaded_policy_acts_as_the_saved_one(saved):
    net, folder = saved
    again = load_policy(folder)
    assert not again.training
    assert again.spec == net.spec
    for frame in (observation(3, 0), observation(3, 1)):
        np.testing.assert_array_equal(again.act(frame, again.begin(range(3)))[0], net.eval().act(frame, net.begin(range(3)))[0])
    checkpoint = read_checkpoint(folder)
    assert checkpoint.training == {"step": 7, "data": "abc"}
    assert checkpoint.tensors("optimizer")["step"].item() == 5
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "model.safetensors", "optimizer.safetensors", "spec.json", "training.json",
    ]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["last"]


def test_statistics_travel_with_the_weights(tmp_path):
    mean = np.linspace(-1, 1, 15)
    net = build_policy(config(), SPEC, {"observation.state": {"mean": mean, "std": np.ones(15)}})
    again = load_policy(save_checkpoint(tmp_path / "a", net, config(), {}))
    np.testing.assert_allclose(again.model.state_token.mean.numpy(), mean, atol=1e-7)


def test_overrides_and_given_weights(saved, tmp_path):
    net, folder = saved
    assert load_policy(folder, gripper_rule="threshold").head.gripper_rule == "threshold"
    with pytest.raises(UserError, match="no config key 'gripper'"):
        load_policy(folder, gripper="threshold")
    zeros = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    averaged = load_policy(save_checkpoint(tmp_path / "ema", net, config(), {}, weights=zeros))
    assert not any(p.any() for p in averaged.parameters())


def test_saving_again_replaces_the_whole_and_a_failure_leaves_the_old(saved):
    net, folder = saved
    save_checkpoint(folder, net, config(), {"step": 8})
    assert read_checkpoint(folder).training == {"step": 8}
    assert not (folder / "optimizer.safetensors").exists()
    with pytest.raises(TypeError):
        save_checkpoint(folder, net, config(), {"step": object()})
    assert read_checkpoint(folder).training == {"step": 8}
    assert [p.name for p in folder.parent.iterdir()] == ["last"]


def damage(folder, what):
    if what == "other size":
        OmegaConf.save(OmegaConf.merge(config(), {"width": 32}), folder / "config.yaml")
    elif what == "more layers":
        OmegaConf.save(OmegaConf.merge(config(), {"layers": 3}), folder / "config.yaml")
    elif what == "fewer layers":
        OmegaConf.save(OmegaConf.merge(config(), {"layers": 1}), folder / "config.yaml")
    elif what == "target":
        OmegaConf.save(OmegaConf.merge(config(), {"_target_": "os.system"}), folder / "config.yaml")
    elif what == "inner target":
        OmegaConf.save(OmegaConf.merge(config(), {"head": {"_target_": "os.getcwd"}}), folder / "config.yaml")
    elif what == "unknown target":
        OmegaConf.save(OmegaConf.merge(config(), {"_target_": "policies.gr9.Policy"}), folder / "config.yaml")
    elif what == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "not a number":
        tensors = load_file(folder / "model.safetensors")
        tensors["head.arm.weight"][0, 0] = float("nan")
        save_file(tensors, folder / "model.safetensors")
    elif what == "spec":
        (folder / "spec.json").write_text("{}")
    elif what == "list":
        (folder / "spec.json").write_text("[]")
    elif what == "yaml":
        (folder / "config.yaml").write_text("a: [1, 2\nb: }")
    elif what == "json":
        (folder / "training.json").write_text("{")
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("other size", r"has shape \(.*but \(.*use the policy config"),
        ("more layers", "lacks 'model.trunk.blocks.2"),
        ("fewer layers", "has the unexpected 'model.trunk.blocks.1"),
        ("target", "'os.system' is not allowed"),
        ("inner target", "inner _target_ 'os.getcwd'"),
        ("unknown target", "'policies.gr9.Policy' does not exist"),
        ("truncated", "model.safetensors' cannot be read"),
        ("not a number", r"head.arm.weight \(1 in all\) is not finite"),
        ("spec", "spec schema is None"),
        ("json", "cannot be read"),
        ("list", "cannot be read"),
        ("yaml", "cannot be read .*config.yaml.*copy or train it again"),
        ("spec.json", "has no spec.json"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(saved, what, message):
    damage(saved[1], what)
    with pytest.raises(UserError, match=message) as raised:
        load_policy(saved[1])
    assert "\n" not in str(raised.value)


def test_a_policy_starts_from_video_pretraining_and_says_what_it_took(tmp_path):
    video = policy(VIDEO, seed=1)
    folder = save_checkpoint(tmp_path / "video", video, config(), {})
    net, said = policy(seed=2), []
    fresh = {k: v.clone() for k, v in net.state_dict().items()}
    matched = load_matching(net, folder, said.append)
    own, source = net.state_dict(), video.state_dict()
    assert set(matched.loaded) == set(dict(video.named_parameters()))
    assert all(torch.equal(own[k], source[k]) for k in matched.loaded)
    assert matched.aliased["model.vision.wrist.convs.0.weight"] == "model.vision.static.convs.0.weight"
    assert torch.equal(own["model.vision.wrist.convs.0.weight"], source["model.vision.static.convs.0.weight"])
    assert {n.split(".")[0] for n in matched.new} == {"model", "head"}
    assert all(torch.equal(own[k], fresh[k]) for k in matched.new)
    assert matched.unused == []
    assert any("head.arm.weight" in line for line in said)
    assert set(matched.loaded) | set(matched.aliased) | set(matched.new) == set(dict(net.named_parameters()))


def test_parts_of_video_pretraining_can_be_taken_alone(tmp_path):
    video = policy(VIDEO, seed=1)
    folder = save_checkpoint(tmp_path / "video", video, config(), {})
    net = policy(seed=2)
    fresh = {k: v.clone() for k, v in net.state_dict().items()}
    matched = load_matching(net, folder, parts=["model.decoder", "model.resampler.latents"])
    parts = ("model.decoder.", "model.resampler.latents")
    assert set(matched.loaded) == {name for name in dict(net.named_parameters()) if name.startswith(parts)}
    own, source = net.state_dict(), video.state_dict()
    assert all(torch.equal(own[name], (source if name in matched.loaded else fresh)[name]) for name in own)
    with pytest.raises(UserError, match=r"has no part 'model\.decode': choose init_parts from .*model\.decoder"):
        load_matching(net, folder, parts=["model.decode"])


def test_weights_of_another_size_are_refused_not_skipped(tmp_path):
    folder = save_checkpoint(tmp_path / "wide", policy(VIDEO, width=32), config(width=32), {})
    net = policy()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match="has shape"):
        load_matching(net, folder)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
