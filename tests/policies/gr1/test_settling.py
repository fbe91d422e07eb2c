"""What a policy hears in new words lies among what it was trained on, where its config says so."""

import numpy as np
import pytest
import torch
from small_gr1 import SENTENCES, config, observation, policy

from vla.checkpoint import load_policy, save_checkpoint

STRANGE = "kindly shove the crimson brick leftwards"
KNOWN = tuple(f"{sentence}{end}" for sentence in SENTENCES for end in ("", " please", " now", ", please"))
"""Alike by fours, as the sentences of a task are to a trained projection."""


def settling(settle: bool):
    return {"text": {"name": "minilm", "pooling": 4, "settle": settle}}


def heard(net, *sentences):
    return net.model.text.heard(net.model.text.rows(sentences))


def test_a_known_sentence_stays_and_a_strange_one_comes_to_its_nearest():
    text = policy(**settling(True)).eval().model.text
    plain, strange = text(KNOWN).detach(), text([STRANGE]).detach()
    text.learnt(KNOWN)
    apart = torch.cdist(plain, plain).fill_diagonal_(torch.inf).amin(1).median()
    assert torch.cdist(strange, plain).min() > 2 * apart
    assert torch.equal(text.heard(text.rows(KNOWN)), plain)
    settled = text.heard(text.rows([STRANGE]))
    assert torch.cdist(settled, plain).argmin() == torch.cdist(strange, plain).argmin()
    assert torch.cdist(settled, plain).min() < apart
    # It is a mean of the known ones: no entry lies outside theirs.
    assert (settled >= plain.amin(0) - 1e-5).all()
    assert (settled <= plain.amax(0) + 1e-5).all()


@pytest.mark.parametrize("sentences", [KNOWN, ()])
def test_nothing_moves_without_the_switch_or_without_known_sentences(sentences):
    net = policy(**settling(not sentences)).eval()
    net.learnt(sentences)
    assert torch.equal(heard(net, STRANGE, *SENTENCES), net.model.text([STRANGE, *SENTENCES]))


def test_training_is_untouched():
    losses = []
    for settle in (False, True):
        net = policy(seed=4, **settling(settle))
        net.learnt(KNOWN)
        losses.append(net.model.text([STRANGE]))
    assert torch.equal(*losses)


def test_no_instruction_stays_no_instruction_for_a_policy_that_was_trained_without():
    net = policy(instruction_dropout=0.1, guidance=2.0, **settling(True)).eval()
    plain = net.model.text([""])
    net.learnt(KNOWN)
    assert torch.equal(heard(net, ""), plain)


def test_a_loaded_policy_settles_and_does_not_depend_on_its_neighbours(tmp_path):
    net = policy(**settling(True))
    save_checkpoint(tmp_path / "a", net, config(**settling(True)), {"instructions": list(KNOWN)})
    loaded, unsettled = load_policy(tmp_path / "a"), load_policy(tmp_path / "a", **settling(False))
    frame = observation(3, 0) | {"task": [STRANGE, SENTENCES[0], STRANGE]}
    alone = {name: value[:1] for name, value in frame.items()}
    actions = loaded.act(frame, loaded.begin(range(3)))[0]
    np.testing.assert_array_equal(loaded.act(alone, loaded.begin([0]))[0], actions[:1])
    assert (actions != unsettled.act(frame, unsettled.begin(range(3)))[0]).any()
