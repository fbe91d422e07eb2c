"""The attention rules, pair by pair, and what they promise."""

from itertools import product

import pytest
import torch
from small_gr1 import batch, policy

from policies.gr1.attention import attention_mask


def may_look(looker: tuple, seen: tuple, valid: tuple[bool, ...], sees_foresight: bool, band: int | None) -> bool:
    """The rules as sentences. A token is (kind, step, place in the sequence)."""
    (kind, step, place), (seen_kind, seen_step, seen_place) = looker, seen
    if not valid[seen_step]:
        return False
    if band and seen_step <= step - band:
        return False
    if seen_kind == "foresight":
        return sees_foresight and kind == "action" and step == seen_step
    if seen_kind == "action":
        return False
    return seen_place <= place if kind == "input" else seen_step <= step


@pytest.mark.parametrize("sees_foresight", [False, True])
@pytest.mark.parametrize("band", [None, 1, 2])
@pytest.mark.parametrize(("steps", "inputs", "actions", "foresight"), [(1, 2, 1, 1), (2, 3, 2, 2), (3, 1, 1, 2), (4, 2, 2, 0)])
def test_every_pair_of_tokens(steps, inputs, actions, foresight, band, sees_foresight):
    for valid, asked in product(product([False, True], repeat=steps), (list(range(steps)), [steps - 1])):
        tokens = [("input", s) for s in range(steps) for _ in range(inputs)]
        tokens += [("action", s) for s in asked for _ in range(actions)]
        tokens += [("foresight", s) for s in asked for _ in range(foresight)]
        tokens = [(*token, place) for place, token in enumerate(tokens)]
        mask = attention_mask(torch.tensor([valid]), inputs, actions, foresight, asked, sees_foresight, band)[0]
        assert mask.shape == (len(tokens), len(tokens))
        for looker in tokens:
            row = [may_look(looker, seen, valid, sees_foresight, band) for seen in tokens]
            if not any(row):  # in a padded step with nothing before it: its output is never used
                row[looker[2]] = True
            assert mask[looker[2]].tolist() == row, (valid, asked, looker)


@pytest.mark.parametrize("history", [1, 3])
def test_leaving_out_foresight_queries_leaves_actions_unchanged(history):
    model = policy(history=history).eval().model
    frames, valid = torch.randn(2, history, model.inputs, 16), torch.ones(2, history, dtype=torch.bool)
    steps = list(range(history))
    alone, _ = model.think(frames, valid, steps, act=True, foresee=False)
    beside, _ = model.think(frames, valid, steps, act=True, foresee=True)
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sees", [False, True])
def test_actions_depend_on_foresight_queries_only_if_configured(sees):
    model = policy(act_sees_foresight=sees).eval().model
    frames, valid = torch.randn(2, 1, model.inputs, 16), torch.ones(2, 1, dtype=torch.bool)
    before, _ = model.think(frames, valid, [0], act=True, foresee=False)
    with torch.no_grad():
        for query in model.obs_query.values():
            query.normal_()
    after, _ = model.think(frames, valid, [0], act=True, foresee=False)
    assert torch.equal(before, after) != sees


def test_the_future_and_padded_frames_do_not_reach_an_output():
    model = policy(history=3).eval().model
    frames, valid = torch.randn(1, 3, model.inputs, 16), torch.tensor([[False, True, True]])
    before, seen = model.think(frames, valid, [0, 1, 2], act=True, foresee=True)
    frames = frames.clone()
    frames[:, [0, 2]] = torch.randn(1, 2, model.inputs, 16)
    after, seen_after = model.think(frames, valid, [0, 1, 2], act=True, foresee=True)
    assert torch.equal(before[:, 1], after[:, 1])
    assert torch.equal(seen["wrist"][:, 1], seen_after["wrist"][:, 1])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_loss_ignores_what_is_masked():
    net = policy(history=3).eval()
    data = batch(4, 3)
    data["frame.mask"][:, 0] = False
    data["action.mask"][:, :, 2:] = False
    data["future.mask"][1] = False
    before, _ = net.loss(data)
    changed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    changed["action"][:, :, 2:] = 9.0
    changed["action"][:, 0] = 9.0
    for camera in ("static", "wrist"):
        changed[f"observation.images.{camera}"][:, 0] = 0
        changed[f"future.images.{camera}"][1] = 7
    after, _ = net.loss(changed)
    assert torch.equal(before, after)
