"""Rollouts: memory against the full window, plans, and independence of how worlds are batched."""

import numpy as np
import pytest
import torch
from small_f1 import SENTENCES, SPEC, VIDEO, observation, pictures, policy, take

from policies.f1.tokenizer import from_signed
from policies.nn.images import normalise, resize
from vla.policy import Imagining, Policy
from vla.spec import UserError


@torch.no_grad()
def full_window(net, observations: list[dict], memory) -> tuple[np.ndarray, torch.Tensor]:
    """Actions and plan from all frames at once, by the path that training takes: no memory of tokens, no cache."""
    shown = observations[:: -net.stride][: net.window][::-1]
    shown = [observations[0]] * (net.window - len(shown)) + shown

    def at(seen, camera, size):
        return resize(torch.from_numpy(seen[f"observation.images.{camera}"]), size)

    images = {c: normalise(at(observations[-1], c, net.sees)) for c in SPEC.cameras}
    words = net.model.understanding.words(observations[-1]["task"])
    seen, valid = net.model.understanding(images, net.model.understanding.language(words))
    known = net._known(torch.stack([net._tokens(at(frame, "static", net.size)) for frame in shown], dim=1))
    uniform, noise = net._draw(memory)
    plan = net.model.imagine(net.tokenizer, seen, valid, known, uniform, **net.sampling)[0]
    state, steps = torch.from_numpy(observations[-1]["observation.state"]), noise
    for i in range(net.steps):
        acting = (state, steps[:, None], torch.full((len(state), 1), 1 - i / net.steps))
        steps = steps - net.model.think(seen, valid, known, net.tokenizer.inputs(plan), acting)[1][:, 0] / net.steps
    return steps.clamp(-1, 1).numpy(), plan


@pytest.mark.parametrize(("history", "stride", "kind"), [(1, 1, "vq"), (3, 1, "vae"), (3, 2, "vq")])
def test_acting_on_memory_equals_the_full_window(history, stride, kind):
    net = policy(kind=kind, history=history, history_stride=stride).eval()
    memory, seen = net.begin(range(5)), []
    for step in range(7):
        seen.append(observation(5, step))
        if step % 3 == 1 and net.history:
            memory = net.remember(seen[-1], memory)
            continue
        expected, plan = full_window(net, seen, memory)
        actions, memory = net.act(seen[-1], memory)
        np.testing.assert_allclose(actions[..., :6], expected[..., :6], atol=1e-4)
        torch.testing.assert_close(memory["plan"], plan, atol=1e-4, rtol=0)
        assert set(np.unique(actions[..., 6])) <= {-1.0, 1.0}


def test_a_step_tokenises_only_the_new_frame_and_plans_once():
    net = policy(history=3)
    frames, planned = [], []
    net.tokenizer.encoder.register_forward_hook(lambda m, inputs, out: frames.append(len(inputs[0])))
    net.model.generation.head.register_forward_hook(lambda m, inputs, out: planned.append(out.shape[1]))
    memory = net.begin(range(8))
    for step in range(3):
        _, memory = net.act(observation(8, step), memory)
        memory = net.remember(observation(8, step + 10), memory)
    assert frames == [8] * 6
    assert planned == [1, 4] * 3  # two scales, once per chunk and not per Euler step


@pytest.mark.parametrize("changes", [{}, {"history": 3}, {"kind": "vae"}, {"foresight": {"scales": 0}}])
def test_actions_do_not_depend_on_batching(changes):
    net = policy(**changes)
    worlds, rng = 19, np.random.default_rng(0)
    frames = [observation(worlds, step) for step in range(3)]

    def play(chosen):
        memory, out = net.begin(chosen), []
        for frame in frames:
            actions, memory = net.act(take(frame, chosen), memory)
            out.append(actions)
        return np.stack(out, 1), net.foresee(memory)

    together, imagined = play(list(range(worlds)))
    for _ in range(3):
        chosen = rng.permutation(worlds)[: rng.integers(1, worlds + 1)].tolist()
        alone, seen = play(chosen)
        np.testing.assert_array_equal(alone, together[chosen])
        for camera, picture in seen.items():
            np.testing.assert_array_equal(picture, imagined[camera][chosen])


def test_randomness_is_a_function_of_seed_and_count():
    net = policy(foresight={"top_k": 32})
    same = take(observation(1), [0] * 12)
    first, memory = net.act(same, net.begin(range(12)))
    second, _ = net.act(same, memory)
    again, repeated = net.act(same, net.begin(range(12)))
    np.testing.assert_array_equal(first, again)
    assert torch.equal(memory["plan"], repeated["plan"])
    assert (memory["plan"] != memory["plan"][:1]).any()
    assert (first != second).any()
    assert (first != first[:1]).any()


def test_a_new_instruction_starts_history_anew():
    net = policy(history=3)
    memory = net.act({**observation(2, 0), "task": [SENTENCES[0]] * 2}, net.begin([0, 1]))[1]
    changed = {**observation(2, 1), "task": [SENTENCES[0], SENTENCES[1]]}
    _, memory = net.act(changed, memory)
    _, fresh = net.act(changed, net.begin([0, 1]))
    assert not torch.equal(memory["history"][0], fresh["history"][0])
    assert torch.equal(memory["history"][1], fresh["history"][1])


@pytest.mark.parametrize("fill", [False, True])
def test_what_is_foreseen_is_the_plan_of_the_last_act(fill):
    net = policy(foresight={"fill": fill})
    assert isinstance(net, Policy)
    assert isinstance(net, Imagining)
    _, memory = net.act(observation(3), net.begin(range(3)))
    frames = net.foresee(memory)
    assert {k: (v.shape, v.dtype) for k, v in frames.items()} == {"static": ((3, 16, 16, 3), np.dtype(np.uint8))}
    other = {**memory, "plan": memory["plan"].roll(1, 0)}
    np.testing.assert_array_equal(net.foresee({k: v[1:2] for k, v in memory.items()})["static"], frames["static"][1:2])
    if not fill:
        np.testing.assert_array_equal(net.foresee(other)["static"], np.roll(frames["static"], 1, 0))
    # A frame that was only remembered has no plan yet: it is made, as the next act would make it.
    looked = net.remember(observation(3), net.begin(range(3)))
    np.testing.assert_array_equal(net.foresee(looked)["static"], frames["static"])
    assert all(len(v) == 3 for v in memory.values())


@torch.no_grad()
def test_a_plan_that_nothing_changes_shows_the_frame_as_the_tokenizer_has_it():
    net = policy().eval()
    now = pictures(3)
    tokens = net._tokens(now)
    (shown,) = net._show(tokens[:, : net.tokenizer.length(net.scales)], now)
    assert torch.equal(shown, from_signed(net.tokenizer.pixels(tokens)))


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_any_number_of_euler_steps(steps):
    net = policy(flow={"steps": steps})
    calls = []
    net.model.action.leave.register_forward_hook(lambda m, inputs, out: calls.append(1))
    net.act(observation(2), net.begin([0, 1]))
    assert len(calls) == steps


def test_acting_leaves_training_mode_as_it_was():
    net = policy().train()
    net.act(observation(2), net.begin([0, 1]))
    assert net.training


def test_a_video_policy_refuses_to_act_and_shows_what_it_foresees():
    net = policy(VIDEO)
    with pytest.raises(UserError, match="no action expert"):
        net.act(observation(1), {})
    memory = net.remember(observation(2), net.begin([0, 1]))
    assert net.foresee(memory)["static"].shape == (2, 16, 16, 3)
