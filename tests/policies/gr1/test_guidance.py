"""Training without some instructions, and acting that exaggerates what the instruction changes."""

import numpy as np
import pytest
import torch
from small_gr1 import FLOW, SPEC, batch, config, observation, played, policy

from vla.checkpoint import build_policy, load_policy, save_checkpoint
from vla.spec import UserError

LINEAR = {"name": "regression", "hidden": [], "activation": "none"}
SWITCHES = ("instruction_dropout", "guidance")


def guided(guidance: float, **changes):
    """A policy that listens: what is said changes its actions by much, though nobody has trained it."""
    net = policy(instruction_dropout=0.1, guidance=guidance, gripper_rule="threshold", **changes)
    with torch.no_grad():
        net.model.text.project.weight.mul_(1000)
        if net.continues:
            net.head.context.weight.mul_(1000)
    return net


def unsaid(observation: dict) -> dict:
    return {**observation, "task": [""] * len(observation["task"])}


def act(net, seen: dict) -> np.ndarray:
    return net.act(seen, net.begin(range(len(seen["task"]))))[0]


@pytest.mark.parametrize("head", [LINEAR, FLOW])
def test_switched_off_nothing_changes_bit_for_bit(head):
    older = config(head=head)
    for name in SWITCHES:
        del older[name]
    torch.manual_seed(0)
    before, now = build_policy(older, SPEC), policy(head=head)
    losses, states = [], []
    for net in (before, now):
        torch.manual_seed(1)
        net.train()
        losses.append(net.loss(batch(6))[0].item())
        states.append(torch.get_rng_state())
    assert losses[0] == losses[1]
    assert torch.equal(*states)
    np.testing.assert_array_equal(act(before, observation(5)), act(now, observation(5)))
    assert before.begin([0]).keys() == now.begin([0]).keys()
    # Trained with dropout it acts and is validated as without.
    dropped = policy(head=head, instruction_dropout=0.5).eval()
    np.testing.assert_array_equal(act(dropped, observation(5)), act(now, observation(5)))
    for net in (dropped, now.eval()):
        torch.manual_seed(1)
        losses.append(net.loss(batch(6))[0].item())
    assert losses[2] == losses[3]


def test_a_checkpoint_from_before_the_switches_loads(tmp_path):
    net, older = policy(), config()
    for name in SWITCHES:
        del older[name]
    save_checkpoint(tmp_path / "older", net, older, {"step": 1})
    np.testing.assert_array_equal(act(load_policy(tmp_path / "older"), observation(2)), act(net, observation(2)))


def test_the_share_asked_for_is_trained_without_instruction():
    net, spoken = policy(instruction_dropout=0.5).train(), []
    forward = net.model.text.forward
    net.model.text.forward = lambda sentences: spoken.extend(sentences) or forward(sentences)
    for seed in range(5):
        torch.manual_seed(seed)
        net.loss(batch(30))
    assert 0.3 < np.mean([sentence == "" for sentence in spoken]) < 0.7


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("head", [LINEAR, {**FLOW, "steps": 1}])
def test_actions_are_extrapolated_from_those_without_the_instruction(head, guidance):
    """With one step of the flow its actions are linear in the velocity, so that both heads obey the same formula."""
    seen = observation(5)
    said, nothing = (act(guided(1.0, head=head), x)[..., :6] for x in (seen, unsaid(seen)))
    expected = nothing + guidance * (said - nothing)
    found = act(guided(guidance, head=head), seen)[..., :6]
    inside = (np.abs(said) < 1) & (np.abs(nothing) < 1)  # what was clipped to the range cannot be extrapolated
    assert np.abs(said - nothing)[inside].max() > 1e-3
    np.testing.assert_allclose(found[inside], expected[inside].clip(-1, 1), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"history": 3}, {"head": {**FLOW, "steps": 3}, "history": 2}])
def test_guided_actions_do_not_depend_on_batching(changes):
    net, worlds, rng = guided(1.7, **changes), 11, np.random.default_rng(0)
    frames = [observation(worlds, step) for step in range(3)]

    together = played(net, frames, list(range(worlds)))
    for _ in range(3):
        chosen = rng.permutation(worlds)[: rng.integers(1, worlds + 1)].tolist()
        np.testing.assert_array_equal(played(net, frames, chosen), together[chosen])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instruction_dropout": 1.0}, "instruction_dropout is 1.0"),
        ({"instruction_dropout": -0.1}, "instruction_dropout is -0.1"),
        ({"guidance": 2.0}, "guidance is 2.0 but the policy has instruction_dropout 0"),
    ],
)
def test_switches_that_cannot_be_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        policy(**changes)
