"""The attention rules, pair by pair, and what they promise."""

from itertools import product

import pytest
import torch

from policies.f1.mask import attention_mask


def may_look(looker: tuple, seen: tuple) -> bool:
    """The rules as sentences. A token is (kind, which: the scale, or the draw), real."""
    (kind, which), (seen_kind, seen_which, real) = looker[:2], seen
    if not real:
        return False
    if kind == "understanding":
        return seen_kind == "understanding"
    if kind == "history":
        return seen_kind in ("understanding", "history")
    if kind == "foresight":
        return seen_kind in ("understanding", "history") or (seen_kind == "foresight" and seen_which <= which)
    if kind == "state":
        return seen_kind != "action"
    return seen_kind != "action" or seen_which == which


@pytest.mark.parametrize("understanding", [1, 3])
@pytest.mark.parametrize("history", [0, 2])
@pytest.mark.parametrize("scales", [(), (1,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize(("state", "chunk", "draws"), [(0, 0, 0), (1, 2, 1), (1, 2, 3)])
def test_every_pair_of_tokens(understanding, history, scales, state, chunk, draws):
    paddings = [v for v in product([True, False], repeat=understanding) if v[0]]
    mask = attention_mask(torch.tensor(paddings), history, scales, state, chunk, draws)
    for valid, found in zip(paddings, mask, strict=True):
        tokens = [("understanding", 0, real) for real in valid]
        tokens += [("history", 0, True)] * history
        tokens += [("foresight", scale, True) for scale, count in enumerate(scales) for _ in range(count)]
        tokens += [("state", 0, True)] * state
        tokens += [("action", draw, True) for draw in range(draws) for _ in range(chunk)]
        assert found.shape == (len(tokens), len(tokens))
        for i, looker in enumerate(tokens):
            assert found[i].tolist() == [may_look(looker, seen) for seen in tokens], (valid, looker)
        assert found.any(-1).all()


def test_the_picture_in_the_docstring():
    picture = (attention_mask.__doc__ or "").splitlines()
    heading = next(line for line in picture if line.split() == [*"UUUHH122Saabb"])
    columns = [place for place, letter in enumerate(heading) if letter != " "]
    drawn = [[line.ljust(99)[c] == "x" for c in columns] for line in picture if line.ljust(99)[columns[0]] == "x"]
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert drawn == attention_mask(valid, history=2, scales=(1, 2), state=1, chunk=2, draws=2)[0].tolist()
