"""GR-1 and F1 behind LeRobot's interface, in this process: the same windows, the same actions, one folder for both worlds."""

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot_folders import SENTENCES, SPEC, dataset, seen
from lerobot_policy_vla.__main__ import export
from lerobot_policy_vla.policy import spec_of
from tiny_plugin import made

from lerobot_policy_vla import F1Config, Gr1Config
from policies.lerobot import LeRobot
from vla.checkpoint import load_policy, save_checkpoint
from vla.data.windows import Windows
from vla.spec import ACTION, STATE, Spec, UserError

HISTORY = {"history": 3, "history_stride": 2, "supervise": "all", "foresight": {"steps": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data") / "tiny")


def loaded(data, config, meta, rows):
    """A batch as lerobot-train hands it to the policy."""
    steps = {ACTION: config.action_delta_indices} | dict.fromkeys(config.input_features, config.observation_delta_indices)
    frames = LeRobotDataset(
        "local/tiny", root=data, delta_timestamps={k: [i / 30 for i in indices] for k, indices in steps.items()}
    )
    before, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    return before(torch.utils.data.default_collate([frames[i] for i in rows]))


@pytest.mark.parametrize("changes", [{}, HISTORY])
def test_a_batch_of_lerobot_s_is_the_window_that_we_train_on(data, changes):
    policy, meta = made(data, changes=changes)
    rows = [0, 3, 12, 13, 14, 23]  # at beginnings, in the middle and at ends of the two episodes
    windows = policy._windows(loaded(data, policy.config, meta, rows))
    network = policy.config.network
    ours = Windows(
        data.with_suffix(".zarr"), batch_size=24, shuffle=False, history=network["history"], chunk=network["chunk"],
        history_stride=network["history_stride"], foresight_steps=network["foresight"]["steps"],
    ).batch(0)  # fmt: skip
    assert windows["task"] == [ours["task"][i] for i in rows]
    for name in ("frame.mask", "future.mask", "action.mask"):
        torch.testing.assert_close(windows[name], ours[name][rows])
    torch.testing.assert_close(windows[STATE], ours[STATE][rows])
    for camera in SPEC.cameras:
        now = f"observation.images.{camera}"
        torch.testing.assert_close(windows[now], ours[now][rows], rtol=0, atol=0)
    for name, mask in ((ACTION, "action.mask"), *((f"future.images.{c}", "future.mask") for c in SPEC.cameras)):
        there = windows[mask]
        torch.testing.assert_close(windows[name][there], ours[name][rows][there], rtol=0, atol=0)


@pytest.mark.parametrize("kind", [Gr1Config, F1Config])
def test_it_learns_and_acts(data, kind):
    changes = {"foresight": {"scales": 0, "history_scales": 2}} if kind is F1Config else {}
    policy, meta = made(data, kind, changes)
    loss, parts = policy.forward(loaded(data, policy.config, meta, [0, 5]))
    loss.backward()
    assert set(parts) >= ({"flow"} if kind is F1Config else {"arm", "gripper", "foresight_static"})
    assert all(isinstance(part, float) for part in parts.values())
    matrices, others = policy.get_optim_params()
    assert len(matrices["params"]) + len(others["params"]) == sum(p.requires_grad for p in policy.parameters())
    now = {k: torch.from_numpy(v) for k, v in seen(2).items()}
    now = {k: v.permute(0, 3, 1, 2) / 255 if "images" in k else v for k, v in now.items()} | {"task": list(SENTENCES)}
    torch.manual_seed(1)
    first = [policy.select_action(now) for _ in range(4)]
    assert all(a.shape == (2, 7) for a in first)
    policy.reset()
    torch.manual_seed(1)
    again = [policy.select_action(now) for _ in range(4)]
    torch.testing.assert_close(torch.stack(first), torch.stack(again), rtol=0, atol=0)


def test_f1_wants_its_tokenizer(data):
    with pytest.raises(UserError, match="tokenizer has not been trained"):
        made(data, F1Config)


@pytest.mark.parametrize("changes", [{}, HISTORY])
def test_one_folder_for_both_worlds(data, changes, tmp_path):
    """Saved by LeRobot, loaded by LeRobot, by us, and by us through LeRobot: the same actions each time."""
    policy, meta = made(data, changes={**changes, "gripper_rule": "threshold"})
    (tmp_path / "train_config.json").write_text("{}")
    policy.save_pretrained(tmp_path)
    for processor in make_pre_post_processors(policy.config, dataset_stats=meta.stats):
        processor.save_pretrained(tmp_path)
    assert (tmp_path / "train_config.json").exists()  # what else is there stays
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert config.network == policy.config.network
    assert Spec.from_dict(config.spec) == spec_of(meta)
    assert set(config.input_features) == {"observation.images.static", "observation.images.wrist", STATE}
    config.pretrained_path = tmp_path
    again = make_policy(config, ds_meta=meta)
    ours, through = load_policy(tmp_path), LeRobot(SPEC, path=str(tmp_path), names={}, override={}, device="cpu")
    assert ours.spec == spec_of(meta) == through.spec
    assert ours.history == through.history == bool(changes)
    here, place = ours.begin([5]), through.begin([5])
    for step in range(7):
        frame = {k: v[step : step + 1] for k, v in seen(9, seed=4).items()} | {"task": [SENTENCES[0]]}
        batch = {k: torch.from_numpy(v).permute(0, 3, 1, 2) / 255 if "images" in k else v for k, v in frame.items()}
        batch[STATE] = torch.from_numpy(frame[STATE])
        action = again.select_action(batch).numpy()[0]
        if step in (0, config.n_action_steps):
            expected, here = ours.act(frame, here)
            chunk, place = through.act(frame, place)
            np.testing.assert_array_equal(chunk[0], expected[0, : config.n_action_steps])
        else:
            here = ours.remember(frame, here) if ours.history else here
            place = through.remember(frame, place) if through.history else place
        np.testing.assert_array_equal(action, expected[0, step % config.n_action_steps])


def test_f1_starts_from_a_trained_tokenizer(data, tmp_path):
    blind, _ = made(data, F1Config, {"foresight": {"scales": 0, "history_scales": 2}})
    blind.policy.tokenizer.steps.data.fill_(1)  # as if it had been trained
    save_checkpoint(tmp_path, blind.policy, blind.config.network, {})
    policy, meta = made(data, F1Config, init_from=str(tmp_path))
    tokens = policy.policy.tokenizer.state_dict()
    assert all(torch.equal(tokens[name], value) for name, value in blind.policy.tokenizer.state_dict().items())
    _, parts = policy.forward(loaded(data, policy.config, meta, [0, 5]))
    assert set(parts) == {"flow", "foresight_static"}


def test_lerobot_s_own_dataset_has_names_only(data, tmp_path):
    plain = shutil.copytree(data, tmp_path / "plain")
    (plain / "meta/vla.json").unlink()
    policy, _ = made(plain)
    spec = policy.policy.spec
    assert [entry.name for entry in spec.state] == [entry.name for entry in SPEC.state]
    assert {(entry.unit, entry.low, entry.high) for entry in spec.action} == {("1", None, None)}
    assert (spec.control_hz, spec.action_kind, spec.frame) == (30.0, "joints", "")
    known = LeRobotDatasetMetadata("local/tiny", plain).stats["action"]
    np.testing.assert_allclose(policy.policy.actions.middle, known["mean"], rtol=1e-5)


def test_a_run_s_config_is_read_again(data, tmp_path):
    policy, _ = made(data)
    TrainPipelineConfig(dataset=DatasetConfig("local/tiny"), policy=policy.config).save_pretrained(tmp_path)
    again = TrainPipelineConfig.from_pretrained(tmp_path).policy
    assert (again.network, Spec.from_dict(again.spec)) == (policy.config.network, SPEC)


def test_frozen_towers_are_not_saved(data, tmp_path):
    policy, _ = made(data)
    policy.policy.prepare(["a sentence"])  # MiniLM is in memory now, 90 MB of it
    policy.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * sum(p.numel() for p in policy.parameters()) + 100_000
    assert (tmp_path / "model.safetensors").stat().st_size < 2_000_000


def test_a_checkpoint_of_ours_for_lerobot(data, tmp_path):
    policy, _ = made(data)
    network = policy.config.network | {"augment": {**policy.config.network["augment"], "swap": 0.6}}
    save_checkpoint(tmp_path / "ours", policy.policy, network, {"step": 7})
    export(tmp_path / "ours", tmp_path / "theirs")
    there = type(policy).from_pretrained(tmp_path / "theirs").policy.state_dict()
    assert all(torch.equal(there[name], value) for name, value in policy.policy.state_dict().items())
    assert json.loads((tmp_path / "theirs/policy_preprocessor.json").read_text())["steps"]
    with pytest.raises(UserError, match="exists already"):
        export(tmp_path / "ours", tmp_path / "theirs")


def test_mistakes_are_told(data, tmp_path):
    with pytest.raises(UserError, match=r"augment\.swap is 0\.6"):
        Gr1Config(changes={"augment": {"swap": 0.6}}, device="cpu")
    with pytest.raises(UserError, match="n_action_steps is 11"):
        Gr1Config(n_action_steps=11, device="cpu")
    with pytest.raises(UserError, match="config of policies"):
        made(data, changes={"colour": "red"})
    policy, _ = made(data)
    policy.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    saved["network"]["width"] = 32
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="do not fit their config"):
        type(policy).from_pretrained(tmp_path)
