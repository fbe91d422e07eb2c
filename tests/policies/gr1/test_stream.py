"""Streaming: one frame's tokens a step give what the whole sequence gives, however long it is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_gr1 import FLOW, SENTENCES, batch, observation, played, policy, take

from policies.nn.images import normalise
from policies.nn.rotary import CLOCK, clock, turn
from vla.rollout import merge, select
from vla.spec import UserError

ROTARY = {"time": "rotary", "history": 3, "gripper_rule": "threshold"}
EXACT = {"atol": 1e-5, "rtol": 0}


def tokens(net, seen: dict) -> torch.Tensor:
    """One world's frame as training encodes it."""
    images = {
        c: normalise(net.transform.resize(torch.from_numpy(seen[f"observation.images.{c}"])[:, None]))[:, 0]
        for c in net.model.cameras
    }
    return net.model.frame(images, torch.from_numpy(seen["observation.state"]), net.model.text(seen["task"]))[0]


@torch.no_grad()
def whole_sequence(net, past: list[torch.Tensor]) -> tuple[np.ndarray, torch.Tensor]:
    """Actions, and what the wrist's [OBS] queries see, after frames of any number, by the path that training takes."""
    frames = torch.stack(past[:: -net.stride][::-1], dim=1)
    t = frames.shape[1]
    acts, obs = net.model.think(frames, torch.ones(1, t, dtype=torch.bool), list(range(t)), act=True, foresee=True)
    assert acts is not None
    return net.head.act(acts[:, -1], torch.full((1, 1), 0.5)).numpy()[0], obs["wrist"][0, -1]


@settings(max_examples=10)
@given(st.data())
def test_streamed_equals_the_whole_sequence_banded(data):
    """Worlds that are shown, asked, given new instructions and begun anew at random."""
    draw = data.draw
    sizes = {"history": draw(st.integers(1, 4)), "history_stride": draw(st.integers(1, 3)), "layers": draw(st.integers(1, 3))}
    net = policy(**ROTARY | sizes, act_sees_foresight=draw(st.booleans())).eval()
    worlds, memory = 3, net.begin([0, 0, 0])
    past, words = [[] for _ in range(worlds)], list(SENTENCES)
    for step in range(draw(st.integers(4, 14))):
        event, world = draw(st.sampled_from(["none", "none", "instruction", "begin"])), draw(st.integers(0, worlds - 1))
        if event == "instruction":
            words[world] = draw(st.sampled_from([s for s in SENTENCES if s != words[world]]))
            past[world] = []
        elif event == "begin":
            memory = merge([net.begin([0]) if i == world else select(memory, [i]) for i in range(worlds)])
            past[world] = []
        seen = {**observation(worlds, step), "task": list(words)}
        for i in range(worlds):
            past[i].append(tokens(net, take(seen, [i])).detach())
        if net.history and draw(st.booleans()):
            memory = net.remember(seen, memory)
            continue
        actions, memory = net.act(seen, memory)
        with torch.no_grad():
            _, obs = net.past.think(net.model, *net.past.view(memory), act=False, foresee=True)
        for i in range(worlds):
            expected, foreseen = whole_sequence(net, past[i])
            np.testing.assert_allclose(actions[i], np.clip(expected, -1, 1), **EXACT)
            torch.testing.assert_close(obs["wrist"][i], foreseen, **EXACT)


def test_an_output_reaches_back_through_all_layers_and_no_further():
    model = policy(**ROTARY, layers=2).eval().model
    frames, valid = torch.randn(1, 8, model.inputs, 16), torch.ones(1, 8, dtype=torch.bool)
    before, _ = model.think(frames, valid, [7], act=True, foresee=False)
    for ago in range(8):
        changed = frames.clone()
        changed[:, 7 - ago] = torch.randn(1, model.inputs, 16)
        after, _ = model.think(changed, valid, [7], act=True, foresee=False)
        assert torch.equal(before, after) == (ago > 2 * (3 - 1)), ago


def test_a_step_computes_one_frame_and_memory_stays_of_one_size():
    net = policy(**ROTARY)
    computed = []
    for block in net.model.trunk.blocks:
        block.attention.qkv.register_forward_hook(lambda m, inputs, out: computed.append(inputs[0].shape[1]))
    memory = net.begin([0])
    shapes = {name: value.shape for name, value in memory.items()}
    for step in range(7):
        computed.clear()
        _, memory = net.act(observation(1, step), memory)
        assert {name: value.shape for name, value in memory.items()} == shapes
        assert sorted(computed) == [net.model.action_queries] * 2 + [net.model.inputs] * 2


def test_memory_is_a_value():
    net = policy(**ROTARY)
    _, memory = net.act(observation(2, 0), net.begin([0, 1]))
    first, _ = net.act(observation(2, 1), memory)
    net.act(observation(2, 2), memory)
    again, _ = net.act(observation(2, 1), memory)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_hour_does_not_matter_even_at_midnight(stride):
    net = policy(**ROTARY, history_stride=stride)
    early, late = net.begin([0]), net.begin([0])
    late["written"] = torch.full_like(late["written"], CLOCK * stride - 4)
    for step in range(9):
        first, early = net.act(observation(1, step), early)
        second, late = net.act(observation(1, step), late)
        np.testing.assert_allclose(first, second, **EXACT)
    assert late["written"].max() > CLOCK * stride


def test_turned_keys_know_how_long_ago_and_nothing_else():
    hours = clock(8)
    q, k = torch.randn(2, 1, 1, 1, 8)
    score = lambda now, then: (turn(q, hours[now]) * turn(k, hours[then])).sum()  # noqa: E731
    for ago in (0, 1, 5, 300):
        scores = [score((now + ago) % CLOCK, now) for now in (0, 7, 900, 1023)]
        torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), **EXACT)
    assert len({round(float(score(ago, 0)), 4) for ago in range(20)}) == 20
    with pytest.raises(UserError, match="7 channels wide"):
        clock(7)


@pytest.mark.parametrize("changes", [{}, {"head": FLOW}, {"instruction_dropout": 0.1, "guidance": 2.0}])
def test_streamed_actions_do_not_depend_on_batching(changes):
    net = policy(**ROTARY | changes)
    frames, rng = [observation(11, step) for step in range(5)], np.random.default_rng(0)

    together = played(net, frames, list(range(11)))
    for worlds in (3, net.micro_batch):
        chosen = rng.permutation(11)[:worlds].tolist()
        np.testing.assert_array_equal(played(net, frames, chosen), together[chosen])


def test_trained_on_sequences_longer_than_the_band():
    net = policy(**ROTARY, sequence=6, foresight={"fraction": 0.5})
    assert net.window == 6
    assert policy(**ROTARY).window == 5
    data = batch(4, 6)
    data["frame.mask"][0, :2] = False
    optimizer, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for _ in range(15):
        loss, parts = net(data)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.model.trunk.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(parts["arm"]))
    assert losses[-1] < losses[0]
    assert net.foresee(net.act(observation(2), net.begin([0, 1]))[1])["static"].shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "sun"}, "time 'sun' is unknown: use index or rotary"),
        ({"time": "rotary", "token_positions": 200}, "token_positions 0"),
        ({"time": "rotary", "history": 600}, "at most 512"),
        ({"history": 3, "sequence": 5}, "sequence is 5 with time index"),
        ({"time": "rotary", "history": 3, "sequence": 2}, "sequence is 2 with time rotary and history 3"),
        ({"precision": "fp16"}, "precision 'fp16' is unknown"),
    ],
)
def test_bad_config_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        policy(**changes)
