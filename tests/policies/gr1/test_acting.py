"""Rollouts: memory against the full window, and independence of how worlds are batched."""

import numpy as np
import pytest
import torch
from small_gr1 import FLOW, SENTENCES, SPEC, VIDEO, observation, played, policy, take

from policies.nn.images import normalise
from vla.policy import Imagining, Policy
from vla.spec import UserError


def full_window(net, observations: list[dict]) -> np.ndarray:
    """Actions from all frames at once, by the path that training takes: no memory. Front-padded like a training window."""
    n, window = len(observations[0]["task"]), net.window
    shown = observations[:: -net.stride][:window][::-1]
    padding = window - len(shown)
    frames = []
    for seen in shown:
        images = {
            c: normalise(net.transform.resize(torch.from_numpy(seen[f"observation.images.{c}"])[:, None]))[:, 0]
            for c in net.model.cameras
        }
        frames.append(net.model.frame(images, torch.from_numpy(seen["observation.state"]), net.model.text(seen["task"]))[0])
    frames = torch.stack([torch.zeros_like(frames[0])] * padding + frames, dim=1)
    valid = (torch.arange(window) >= padding).expand(n, -1)
    features, _ = net.model.think(frames, valid, list(range(window)), act=True, foresee=True)
    return net.head.act(features[:, -1], torch.full((n, 1), 0.5)).detach().numpy()


@pytest.mark.parametrize(("history", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_acting_on_memory_equals_the_full_window(history, stride):
    net = policy(history=history, history_stride=stride, gripper_rule="threshold").eval()
    memory, seen = net.begin(range(5)), []
    for step in range(7):
        seen.append(observation(5, step))
        if step % 3 == 1 and net.history:
            memory = net.remember(seen[-1], memory)
            continue
        actions, memory = net.act(seen[-1], memory)
        np.testing.assert_allclose(actions, np.clip(full_window(net, seen), -1, 1), atol=1e-5)


def test_a_step_encodes_only_the_new_frame_and_a_sentence_once():
    net = policy(history=3)
    encoded, spoken = [], []
    for encoder in net.model.vision.values():
        encoder.register_forward_hook(lambda m, inputs, out: encoded.append(len(inputs[0])))
    _, memory = net.act(observation(8, 0), net.begin(range(8)))
    tower = net.model.text._tower  # loaded by the first step
    net.model.text._tower = lambda sentence: spoken.append(sentence) or tower(sentence)
    for step in range(1, 4):
        _, memory = net.act(observation(8, step), memory)
    assert encoded == [8, 8] * 4
    assert spoken == []
    net.act(take(observation(8), [0, 0, 0]) | {"task": ["lift the blue block"] * 3}, net.begin(range(3)))
    assert spoken == ["lift the blue block"]


@pytest.mark.parametrize("changes", [{}, {"history": 3}, {"act_sees_foresight": True}, {"head": FLOW}])
def test_actions_do_not_depend_on_batching(changes):
    net = policy(**changes)
    worlds, rng = 19, np.random.default_rng(0)
    frames = [observation(worlds, step) for step in range(3)]

    together = played(net, frames, list(range(worlds)))
    for _ in range(4):
        chosen = rng.permutation(worlds)[: rng.integers(1, worlds + 1)].tolist()
        np.testing.assert_array_equal(played(net, frames, chosen), together[chosen])


@pytest.mark.parametrize("head", [{"name": "regression", "hidden": [], "activation": "none"}, FLOW])
def test_randomness_is_a_function_of_seed_and_count(head):
    net = policy(head=head)
    same = take(observation(1), [0] * 40)
    first, memory = net.act(same, net.begin(range(40)))
    second, _ = net.act(same, memory)
    again, _ = net.act(same, net.begin(range(40)))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first != first[:1]).any()


def test_sampled_gripper_follows_its_probability_and_thresholded_does_not():
    net = policy()
    with torch.no_grad():
        net.head.gripper.weight.zero_()
        net.head.gripper.bias.fill_(-1.0986)  # probability 0.25
    same = take(observation(1), [0] * 400)
    opened = net.act(same, net.begin(range(400)))[0][..., 6] > 0
    assert 0.17 < opened[:, 0].mean() < 0.33
    assert (opened == opened[:, :1]).all()  # one draw per chunk: no chatter
    net.head.gripper_rule = "threshold"
    assert not (net.act(same, net.begin(range(400)))[0][..., 6] > 0).any()


def test_a_new_instruction_starts_history_anew():
    net = policy(history=3)
    old = {**observation(2, 0), "task": [SENTENCES[0]] * 2}
    memory = net.act(old, net.begin([0, 1]))[1]
    changed = {**observation(2, 1), "task": [SENTENCES[0], SENTENCES[1]]}
    kept, memory = net.act(changed, memory)
    fresh, _ = net.act(changed, net.begin([0, 1]))
    assert memory["valid"].tolist() == [[False, True, True], [False, False, True]]
    assert (kept[0] != fresh[0])[..., :6].any()
    np.testing.assert_array_equal(kept[1][..., :6], fresh[1][..., :6])


@pytest.mark.parametrize("skip", [False, True])
def test_foresee_gives_frames_that_only_the_last_act_determines(skip):
    decoder = {"patch": 8, "width": 16, "layers": 1, "heads": 2, "skip": skip}
    net = policy(history=2, foresight={"decoder": decoder})
    assert isinstance(net, Policy)
    assert isinstance(net, Imagining)
    _, memory = net.act(observation(3), net.begin(range(3)))
    frames = net.foresee(memory)
    assert {k: (v.shape, v.dtype) for k, v in frames.items()} == {c: ((3, 16, 16, 3), np.dtype(np.uint8)) for c in SPEC.cameras}
    one = net.foresee({k: v[1:2] for k, v in memory.items()})
    np.testing.assert_array_equal(one["wrist"], frames["wrist"][1:2])
    assert all(len(v) == 3 for v in memory.values())


def test_acting_leaves_training_mode_as_it_was():
    net = policy(dropout=0.5).train()
    first, second = (net.act(observation(2), net.begin([0, 1]))[0] for _ in range(2))
    assert net.training
    np.testing.assert_array_equal(first, second)


def test_a_video_policy_refuses_to_act():
    with pytest.raises(UserError, match="no action head"):
        policy(VIDEO).act(observation(1), {})
