"""What a key takes: by the annotation of the part that reads it, else by its default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vla.kinds import kind, require_kinds, taken
from vla.spec import UserError


class Part:
    def __init__(
        self,
        whole: int,
        real: float,
        perhaps: int | None = None,
        name: str | Path = "a",
        either: str | Sequence[str] = "all",
        pair: tuple[int, int] = (1, 2),
        weights: Mapping[str, float] | None = None,
        mode: Literal["auto", "memory"] = "auto",
        where: str | torch.device = "cpu",
        **others: Any,
    ):
        pass


DEFAULT = {
    "part": {
        "_target_": f"{__name__}.Part", "whole": 1, "real": 2, "perhaps": None, "name": "a", "either": "all", "pair": [1, 2],
        "weights": {"x": 1.0}, "mode": "auto", "where": "cpu", "nested": {"steps": 3, "share": 0.5, "on": True, "names": ["a"]},
        "unsaid": None,
    },
    "number": 3, "unknown": None, "needed": "???", "linked": "${number}", "absent": "${needed}",
}  # fmt: skip


def judge(**given):
    """Raise what `require_kinds` says of these keys ("__" for a dot)."""
    default = OmegaConf.create(DEFAULT)
    config = default.copy()
    keys = [name.replace("__", ".") for name in given]
    for key, value in zip(keys, given.values(), strict=True):
        OmegaConf.update(config, key, value)
    require_kinds(config, default, keys)


@pytest.mark.parametrize(
    "given",
    [
        {"part__whole": 2}, {"part__real": 1}, {"part__real": 0.5}, {"part__real": float("inf")}, {"part__perhaps": None},
        {"part__perhaps": 4}, {"part__name": "b"}, {"part__either": ["a", "b"]}, {"part__either": "a"}, {"part__pair": [3, 4]},
        {"part__weights": None}, {"part__weights__x": 2}, {"part__weights": {"y": 0.5}}, {"part__mode": "memory"},
        {"part__mode": "nonsense"},  # which words there are is the part's own affair
        {"part__where": "cuda"}, {"part__nested__share": 1}, {"part__nested__on": False}, {"part__nested__names": ["b", "c"]},
        {"part__nested__names": []}, {"part__unsaid": "x"}, {"part__unsaid": [1]}, {"number": 5}, {"unknown": 5},
        {"unknown": "x"}, {"needed": 1.5}, {"linked": 4}, {"number": "${part.whole}"}, {"absent": "x"}, {"number": "???"},
        {"part__nested__more": "x"},
    ],
)  # fmt: skip
def test_what_fits_passes(given):
    judge(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"part__whole": "abc"}, "part.whole=abc is text, but part.whole takes a whole number: write part.whole=1, say."),
        ({"part__whole": 1.5}, "part.whole=1.5 is a number"),
        ({"part__whole": 5e5}, "write part.whole=500000, say."),
        ({"part__whole": True}, "part.whole=true is true or false"),
        ({"part__whole": None}, "part.whole=null is null"),
        ({"part__real": "fast"}, "takes a number: write part.real=2"),
        ({"part__perhaps": "x"}, "takes a whole number or null: write"),
        ({"part__name": 2024}, "takes text: write part.name=\"'2024'\", say."),
        ({"part__either": 3}, "takes text or a list"),
        ({"part__either": ["a", 3]}, "part.either.1=3 is a whole number, but part.either.1 takes text"),
        ({"part__pair": 3}, "takes a list: write part.pair=[1,2], say."),
        ({"part__pair": [1, "b"]}, "part.pair.1=b"),
        ({"part__weights__x": "heavy"}, "part.weights.x=heavy"),
        ({"part__weights": {"y": "heavy"}}, "part.weights.y=heavy is text, but part.weights.y takes a number"),
        ({"part__weights": 3}, "takes a group of keys or null"),
        ({"part__mode": 3}, "takes text"),
        ({"part__where": 0}, "takes text"),
        ({"part__nested__steps": "abc"}, "part.nested.steps=abc"),
        ({"part__nested__steps": None}, "part.nested.steps=null"),
        ({"part__nested": {"steps": "abc"}}, "part.nested.steps=abc"),
        ({"part__nested__on": 1}, "part.nested.on=1 is a whole number, but part.nested.on takes true or false"),
        ({"part__nested__names": "b"}, "takes a list: write part.nested.names=[b], say."),
        ({"part__nested__names": [1]}, "part.nested.names.0=1"),
        ({"number": "x"}, "number=x"),
        ({"number": "${part.name}"}, "number=a"),
        ({"linked": "x"}, "linked=x is text, but linked takes a whole number: write linked=3, say."),
    ],
)
def test_what_does_not_is_one_sentence(given, words):
    with pytest.raises(UserError) as said:
        judge(**given)
    assert words in str(said.value)
    assert str(said.value).count("\n") == 0


def test_a_key_that_a_group_does_not_have():
    default = OmegaConf.create({"trainer": {"steps": 1}})
    given = OmegaConf.create({"trainer": {"steps": 1, "stepz": 2}})
    with pytest.raises(UserError, match=r"trainer has no key 'stepz': take one of accumulate, .*steps"):
        require_kinds(given, default, ["trainer.stepz"])
    given = OmegaConf.create({"trainer": {"steps": 1, "clip": 2.0}})
    require_kinds(given, default, ["trainer.clip"])  # there is such a setting, whatever the config says of it
    given, default = (OmegaConf.create({"data": {"path": path}}) for path in ("data/abc", "???"))
    require_kinds(given, default, ["data.path"])  # the command reads it, and not the group's reader


def test_shown_as_it_was_typed():
    default = OmegaConf.create({"_target_": f"{__name__}.Part", "whole": 1})
    with pytest.raises(UserError, match=r"^override\.whole=x is text, but override\.whole takes"):
        require_kinds(OmegaConf.create({"_target_": f"{__name__}.Part", "whole": "x"}), default, ["whole"], "override.")


def test_a_part_that_is_not_there_leaves_the_default_to_judge():
    default = {"_target_": "no.such.Part", "size": 3, "free": None}
    require_kinds(OmegaConf.create(default | {"size": 4, "free": "x"}), OmegaConf.create(default), ["size", "free"])
    with pytest.raises(UserError, match="size=x"):
        require_kinds(OmegaConf.create(default | {"size": "x"}), OmegaConf.create(default), ["size"])


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()), st.integers())
def test_a_number_takes_whole_numbers_and_nothing_else(value, default):
    config = OmegaConf.create({"a": None})
    OmegaConf.update(config, "a", [value], force_add=True)  # in a list, so that text is not read as an interpolation
    if isinstance(value, str) and ("${" in value or value == "???"):
        return
    if type(value) is int or value is None:  # what is left open in a list stays open
        require_kinds(config, OmegaConf.create({"a": [default]}), ["a"])
    else:
        with pytest.raises(UserError, match=r"^a\.0="):
            require_kinds(config, OmegaConf.create({"a": [default]}), ["a"])


def test_kinds_of_annotations():
    assert taken(int | None) == {kind(1), kind(None)}
    assert taken(Literal["a", 1]) == {kind("a"), kind(1)}
    assert taken(Mapping[str, Any]) == {kind({})}
    assert taken(Any) is taken(None) is taken(torch.device) is None
