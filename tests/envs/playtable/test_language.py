"""Every sentence asks for exactly one task, in the words of that task."""

import re
from collections import Counter

import pytest

from envs.playtable.language import SPLITS, TURNS, instructions, task_of
from envs.playtable.tasks import TASKS
from vla.spec import UserError

SENTENCES = [(task, split, sentence) for task in TASKS for split in SPLITS for sentence in instructions(task, split)]
OPPOSITES = {
    "left": {"right", "clockwise"},
    "right": {"left", "counterclockwise"},
    "on": {"off", "out", "dark", "darken", "down", "downwards"},
    "off": {"on", "shine", "up", "upwards"},
    "open": {"close", "closed", "shut", "inwards", "push", "seal", "retract"},
    "close": {"pull", "outwards", "extend", "unclose"},
    "red": {"blue", "pink"},
    "blue": {"red", "pink"},
    "pink": {"red", "blue"},
}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_every_task_has_enough_sentences():
    for task in TASKS:
        assert len(instructions(task, "train")) >= 11
        assert len(instructions(task, "heldout")) >= 5
        assert len(instructions(task, "validation")) == 1


def test_no_sentence_stands_twice():
    counts = Counter(sentence.strip().lower() for _, _, sentence in SENTENCES)
    assert [s for s, n in counts.items() if n > 1] == []


def test_sentences_lead_back_to_their_task():
    for task, _, sentence in SENTENCES:
        assert task_of(sentence) == task
        assert task_of(f" {sentence.upper()} ") == task
        assert sentence == sentence.strip()
        assert "{" not in sentence


@pytest.mark.parametrize("task", TASKS)
def test_words_agree_with_the_task(task: str):
    for split in SPLITS:
        for sentence in instructions(task, split):
            said = words(sentence)
            named = words(task.replace("_", " ")) & {"red", "blue", "pink", "left", "right"}
            for word in named:
                assert said & {word, TURNS.get(word)}, sentence
                assert not said & OPPOSITES[word], sentence
            if not named & {"red", "blue", "pink"}:
                assert not said & {"red", "blue", "pink"}, sentence
            if not named & TURNS.keys():
                assert not said & {*TURNS.keys(), *TURNS.values()}, sentence


def test_opening_and_closing_are_told_apart():
    for verb in ("open", "close"):
        for split in ("train", "heldout"):
            for sentence in instructions(f"{verb}_drawer", split):
                assert not words(sentence) & OPPOSITES[verb], sentence


@pytest.mark.parametrize(
    ("tasks", "wanted", "unwanted"),
    [
        ([t for t in TASKS if "drawer" in t], {"drawer", "tray", "compartment"}, {"cabinet", "slider", "cupboard", "shelf"}),
        ([t for t in TASKS if t.endswith("_slider")], {"cabinet", "slider", "cupboard", "shelf", "door"}, {"drawer", "tray"}),
        (["move_slider_left", "move_slider_right"], {"door", "slider", "panel", "hatch", "shutter", "screen"},
         {"block", "drawer"}),
        ([t for t in TASKS if t.endswith("_led")], {"led", "green", "diode", "indicator"}, {"bulb", "yellow"}),
        ([t for t in TASKS if t.endswith("_lightbulb")], {"bulb", "yellow", "lamp", "switch", "lever"},
         {"led", "green", "button"}),
        ([t for t in TASKS if t.endswith("_table")], {"block", "cube", "brick", "piece", "object", "red", "blue", "pink"},
         {"drawer", "cabinet", "slider", "tray", "shelf", "cupboard"}),
    ],
)  # fmt: skip
def test_sentences_name_the_thing_and_no_other(tasks: list[str], wanted: set[str], unwanted: set[str]):
    for task in tasks:
        for split in SPLITS:
            for sentence in instructions(task, split):
                assert words(sentence) & wanted, sentence
                assert not words(sentence) & unwanted, sentence


@pytest.mark.parametrize("task", ["turn_on_led", "turn_off_led", "turn_on_lightbulb", "turn_off_lightbulb"])
def test_training_says_which_way_a_light_goes(task: str):
    state = task.split("_")[1]
    for sentence in (*instructions(task, "train"), *instructions(task, "validation")):
        said = words(sentence)
        push_down = {"down"} if task == "turn_on_led" else set()  # the button is always pushed down
        assert not said & OPPOSITES[state] - push_down, sentence


def test_heldout_sentences_are_worded_differently():
    """No held-out sentence shares more than half of its words with any one training sentence of its task."""
    articles = {"the", "a", "to", "it", "and", "of", "in", "on", "from", "is", "that", "into"}
    for task in TASKS:
        for heldout in instructions(task, "heldout"):
            said = words(heldout) - articles - set(task.split("_"))
            for train in instructions(task, "train"):
                assert len(said & words(train)) <= len(said) / 2, (heldout, train)


def test_validation_sentences_are_those_of_the_benchmark():
    assert instructions("rotate_pink_block_left", "validation") == ("take the pink block and rotate it to the left",)
    assert instructions("lift_blue_block_drawer", "validation") == ("Take the blue block from the drawer",)
    assert instructions("push_into_drawer", "validation") == ("slide the block that it falls into the drawer",)
    assert instructions("unstack_block", "validation") == ("remove the stacked block",)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="make coffee"):
        task_of("make coffee")
    with pytest.raises(UserError, match="juggle"):
        instructions("juggle", "train")
    with pytest.raises(UserError, match="'test'"):
        instructions("open_drawer", "test")
