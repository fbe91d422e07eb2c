"""The sentences that ask for a task, in three splits that share none: see instructions.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

from envs.playtable.state import COLOURS
from envs.playtable.tasks import TASKS
from vla.spec import UserError

SPLITS = ("train", "validation", "heldout")
TURNS = {"left": "counterclockwise", "right": "clockwise"}


def instructions(task: str, split: str = "train") -> tuple[str, ...]:
    """The sentences of one task: "train", "heldout" (other wording) or "validation" (the benchmark's one sentence).

    Raises UserError for an unknown task or split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown instruction split {split!r}: use one of {', '.join(SPLITS)}.")
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: use one of {', '.join(TASKS)}.")
    return _table()[task][split]


def task_of(sentence: str) -> str:
    """The task that a sentence of any split asks for, whatever its case; raises UserError for a sentence of none."""
    task = _tasks_by_sentence().get(sentence.strip().lower())
    if task is None:
        raise UserError(f"no task has the instruction {sentence!r}: take one out of envs/playtable/instructions.toml.")
    return task


@cache
def foreign() -> dict[str, tuple[str, ...]]:
    """Sentences that nobody can follow here: "absent" names what the scene does not have, "none" asks for no task at all."""
    return {kind: tuple(sentences) for kind, sentences in _file()["foreign"].items()}


@cache
def _table() -> dict[str, dict[str, tuple[str, ...]]]:
    """task -> split -> sentences, the file's families written out for each colour and side that their key names."""
    table = {}
    for key, splits in _file().items():
        if key == "foreign":
            continue
        for colour, side in product(COLOURS if "{colour}" in key else ("",), TURNS if "{side}" in key else ("",)):
            words = {"colour": colour, "side": side, "turn": TURNS.get(side, "")}
            table[key.format(**words)] = {
                split: tuple(s.format(**words) for s in ([lines] if isinstance(lines, str) else lines))
                for split, lines in splits.items()
            }
    return table


@cache
def _file() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("envs.playtable").joinpath("instructions.toml").read_text("utf-8"))


@cache
def _tasks_by_sentence() -> dict[str, str]:
    return {s.lower(): task for task, splits in _table().items() for sentences in splits.values() for s in sentences}
