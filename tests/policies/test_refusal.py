"""Which instructions a policy refuses, with the real text encoder and the playtable's sentences."""

import pytest
import torch

from envs.playtable.language import foreign, instructions
from envs.playtable.tasks import TASKS
from policies.nn.refusal import LEAST_ODDS, Refusal, elsewhere
from policies.nn.text import Text

TRAIN = [sentence for task in TASKS for sentence in instructions(task, "train")]


@pytest.fixture(scope="module")
def refusal():
    torch.manual_seed(0)
    text = Text({"name": "minilm", "pooling": 0}, 8)
    return Refusal(TRAIN, text.pooled, LEAST_ODDS["minilm"])


def test_what_was_trained_is_never_refused(refusal):
    assert not [s for s in TRAIN if refusal.reason(f" {s.upper()} ")]


def test_the_benchmarks_words_and_other_wording_are_followed(refusal):
    assert not [s for task in TASKS for s in instructions(task, "validation") if refusal.reason(s)]
    heldout = [s for task in TASKS for s in instructions(task, "heldout")]
    assert sum(refusal.reason(s) is not None for s in heldout) < 0.02 * len(heldout)


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("lift the green block", "'green block'"),
        ("Open the fridge", "'fridge'"),
        ("open the fridges!", "'fridge'"),
        ("push the purple cube to the left", "'purple cube'"),
        ("turn on the red light", "'red light'"),
    ],
)
def test_what_the_scene_lacks_is_named(refusal, sentence, word):
    reason = refusal.reason(sentence)
    assert word in reason
    assert repr(sentence) in reason
    assert sum(repr(known) in reason for known in TRAIN) >= 1
    assert reason.endswith(".")


@pytest.mark.parametrize("sentence", ["what is the weather", "tell me a joke", "asdf", "", "   ", "!!!"])
def test_what_is_no_task_is_refused(refusal, sentence):
    reason = refusal.reason(sentence)
    assert "like nothing" in reason


def test_a_share_of_foreign_sentences_is_caught(refusal):
    """Half of what benchmarks/refusal.py found on them is asked for here, so that a broken score shows."""
    assert sum(refusal.reason(s) is not None for s in foreign()["absent"]) > 0.35 * len(foreign()["absent"])
    assert sum(refusal.reason(s) is not None for s in foreign()["none"]) > 0.35 * len(foreign()["none"])


def test_a_thing_or_colour_that_training_names_is_known():
    text = Text({"name": "minilm", "pooling": 0}, 8)
    known = [f"put the {colour} cup on the {thing}" for colour in ("red", "blue") for thing in ("book", "plate")] * 6
    kitchen = Refusal(known, text.pooled, -1e9)
    for sentence in ("put the red cup on the book", "take the blue cups", "a red book"):
        assert kitchen.strange(sentence) is None
    assert kitchen.strange("put the green cup down") == "green cup"
    assert kitchen.strange("open the fridge") == "fridge"


def test_the_sentences_elsewhere_are_none_of_those_that_judge():
    judged = {sentence for sentences in foreign().values() for sentence in sentences}
    assert not judged & set(elsewhere()[1])
    assert len(judged) >= 100
