"""LeRobot's policies act in our loop as in LeRobot's, each world for itself, and features that differ are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot_folders import SENTENCES, SPEC, dataset, seen, train
from safetensors.torch import load_file, save_file
from served import serving

from policies.lerobot import LeRobot
from policies.remote import Remote
from vla.policy import Policy
from vla.rollout import merge, select
from vla.spec import STATE, Entry, UserError, require_match

KINDS = ("act", "diffusion")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    return {kind: train(kind, data, tmp_path_factory.mktemp("policies") / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def policies(folders):
    return {kind: made(folder) for kind, folder in folders.items()}


def made(path, spec=SPEC, **options):
    settings = {"path": str(path), "names": {}, "override": {}, "device": "cpu", **options}
    return LeRobot(spec, **settings)


def observation(*frames):
    """What worlds see that are at these frames; which sentence each follows depends on its frame, too."""
    every = seen(50, seed=7)
    return {name: values[list(frames)] for name, values in every.items()} | {"task": [SENTENCES[f % 2] for f in frames]}


def play(policy, seed, frames, asked):
    """One world on its own: its chunks when it was asked."""
    memory, chunks = policy.begin([seed]), []
    for step, frame in enumerate(frames):
        if step in asked:
            chunk, memory = policy.act(observation(frame), memory)
            chunks.append(chunk[0])
        elif policy.history:
            memory = policy.remember(observation(frame), memory)
    return chunks


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract(kind, policies):
    policy = policies[kind]
    assert isinstance(policy, Policy)
    assert policy.spec == replace(SPEC, projections={})
    assert policy.history == (kind == "diffusion")
    chunk, _ = policy.act(observation(0, 1, 2), policy.begin([4, 5, 6]))
    assert chunk.shape == (3, 8 if kind == "act" else 4, 7)
    assert chunk.dtype == np.float32
    assert np.abs(chunk).max() <= 1
    assert np.abs(chunk[0] - chunk[1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_worlds_do_not_reach_each_other(kind, policies):
    """Two worlds that begin at different times and ask at different steps, together and each alone: the same bits."""
    policy, frames = policies[kind], {"a": range(0, 8), "b": range(20, 26)}
    alone = play(policy, 3, frames["a"], (0, 3, 6)) + play(policy, 9, frames["b"], (0, 4))
    a, b, chunks = policy.begin([3]), policy.begin([9]), {"a": [], "b": []}
    for step in range(8):
        # b begins at step 2; both ask at step 6.
        asking, watching = {0: ("a", ""), 2: ("b", "a"), 3: ("a", "b"), 6: ("ba", "")}.get(
            step, ("", "a" if step < 2 else "ab")
        )
        for names, ask in ((asking, True), (watching, False)):
            if not names or not (ask or policy.history):
                continue
            now = observation(*(frames["a"][step] if n == "a" else frames["b"][step - 2] for n in names))
            memory = merge([{"a": a, "b": b}[n] for n in names])
            if ask:
                said, memory = policy.act(now, memory)
                for row, n in enumerate(names):
                    chunks[n].append(said[row])
            else:
                memory = policy.remember(now, memory)
            for row, n in enumerate(names):
                a, b = (select(memory, [row]), b) if n == "a" else (a, select(memory, [row]))
    together = chunks["a"] + chunks["b"]
    for x, y in zip(alone, together, strict=True):
        np.testing.assert_array_equal(x, y)


def test_act_says_what_lerobot_would_do(policies, folders):
    """The chunk is the actions that lerobot-eval would take one by one."""
    config = PreTrainedConfig.from_pretrained(folders["act"], cli_overrides=["--pretrained_backbone_weights=null"])
    theirs = ACTPolicy.from_pretrained(folders["act"], config=config)
    before, after = make_pre_post_processors(theirs.config, pretrained_path=str(folders["act"]))
    now = observation(3)
    batch = {k: torch.from_numpy(v).permute(0, 3, 1, 2) / 255 if "images" in k else v for k, v in now.items()}
    batch[STATE] = torch.from_numpy(now[STATE])
    expected = np.stack([after(theirs.select_action(before(dict(batch)))).numpy()[0] for _ in range(8)])
    chunk, _ = policies["act"].act(now, policies["act"].begin([0]))
    np.testing.assert_allclose(chunk[0], expected.clip(-1, 1), atol=1e-6)


def test_diffusion_draws_from_the_world_s_seed_and_sees_two_frames(policies):
    policy = policies["diffusion"]
    first = play(policy, 1, (0, 1), (1,))[0]
    np.testing.assert_array_equal(first, play(policy, 1, (0, 1), (1,))[0])
    torch.manual_seed(99)  # what others draw changes nothing, and nothing is drawn from theirs
    before = torch.get_rng_state()
    np.testing.assert_array_equal(first, play(policy, 1, (0, 1), (1,))[0])
    assert torch.equal(before, torch.get_rng_state())
    assert np.abs(first - play(policy, 2, (0, 1), (1,))[0]).max() > 1e-3
    assert np.abs(first - play(policy, 1, (5, 1), (1,))[0]).max() > 1e-6


def test_temporal_ensembling_stays_the_policy_s_own(folders):
    policy = made(folders["act"], override={"temporal_ensemble_coeff": 0.01, "n_action_steps": 1})
    assert policy.history
    plain = made(folders["act"])
    chunks = play(policy, 0, (0, 1), (0, 1))
    assert chunks[0].shape == (1, 7)
    new, old = (play(plain, 0, (frame,), (0,))[0] for frame in (1, 0))
    low, high = np.minimum(new[0], old[1]), np.maximum(new[0], old[1])
    assert (chunks[1][0] >= low - 1e-5).all()
    assert (chunks[1][0] <= high + 1e-5).all()


def test_it_is_served_like_any_other(policies):
    with serving(policies["diffusion"]) as port:
        there = Remote(SPEC, url=f"ws://127.0.0.1:{port}", openpi={})
        here, memory = play(policies["diffusion"], 4, (0, 1, 2), (0, 2)), there.begin([4])
        first, memory = there.act(observation(0), memory)
        second, _ = there.act(observation(2), there.remember(observation(1), memory))
        there.close()
    np.testing.assert_array_equal([first[0], second[0]], here)


def test_an_old_memory_is_refused(policies):
    memory = policies["act"].begin([0])
    policies["act"].act(observation(0), memory)
    with pytest.raises(UserError, match="used again"):
        policies["act"].act(observation(0), memory)


def test_differing_features_are_refused(folders, data):
    act = folders["act"]
    with pytest.raises(UserError, match="has action of 7 entries but the world has 6"):
        made(act, replace(SPEC, action=SPEC.action[:6]))
    unknown = made(act, None)
    with pytest.raises(UserError, match="has state of 15 entries but the world has 3"):
        unknown.believe(replace(SPEC, state=SPEC.state[:3]))
    with pytest.raises(UserError, match="needs camera 'static'"):
        require_match(unknown.spec, replace(SPEC, cameras={"front": (8, 8)}), "the policy", "the world")
    metres = replace(SPEC, action=(Entry("delta_x", "m", -1.0, 1.0), *SPEC.action[1:]))
    with pytest.raises(UserError, match=r"action\[0\]"):
        require_match(made(act, None, data=str(data)).spec, metres, "the policy", "the world")
    with pytest.raises(UserError, match=r"names has 'observation\.images\.top'"):
        made(act, names={"observation.images.static": "observation.images.top"})
    with pytest.raises(UserError, match="which has no place here"):
        made(act, names={"observation.front": "observation.images.static"})
    with pytest.raises(UserError, match="override names 'chunk'"):
        made(act, override={"chunk": 3})
    with pytest.raises(UserError, match="cannot be read"):
        made(act, data=str(act))


def test_names_are_mapped(policies, folders):
    swapped = {"observation.images.static": "observation.images.wrist", "observation.images.wrist": "observation.images.static"}
    policy, now = made(folders["act"], names=swapped), observation(0)
    turned = now | {ours: now[theirs] for ours, theirs in swapped.items()}
    np.testing.assert_array_equal(
        policy.act(turned, policy.begin([0]))[0], policies["act"].act(now, policies["act"].begin([0]))[0]
    )


def test_what_cannot_be_loaded_is_told(folders, tmp_path):
    with pytest.raises(UserError, match="cannot load the policy"):
        made(tmp_path)
    broken = shutil.copytree(folders["act"], tmp_path / "act")
    weights = load_file(broken / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "action_head" not in k}, broken / "model.safetensors")
    with pytest.raises(UserError, match="cannot load the policy"):
        made(broken)
    config = json.loads((folders["act"] / "config.json").read_text())
    assert config["pretrained_backbone_weights"]  # which are not on this machine, and not needed
    (broken / "config.json").write_text(json.dumps(config | {"type": "brain"}))
    with pytest.raises(UserError, match="'brain'"):
        made(broken)
