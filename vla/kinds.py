"""Whether a value that somebody typed is of a kind that its key takes: a whole number, text, a list, ...

A key takes what the part that reads it says in its annotations: its `_target_`, or the one of READERS for a group of keys
without. Where it says nothing (a key of a command itself, or inside a mapping of anything) the default says it: what is of the
default's kind is taken. Which words or numbers there are is not asked here; the parts tell that in their own sentences.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vla.spec import UserError

# Groups of keys that are handed to something as they are, by their place.
READERS = {
    "trainer": "vla.training.trainer.Settings",
    "data": "vla.data.windows.Windows",
    "server": "vla.serving.server.Server",
    "manner": "vla.collect.Manner",
    "robot.safety": "vla.control.safety.Safe",
    "robot.safety.limits": "vla.control.limits.Limits",
}
# Keys whose default does not say all that they take, by their place, or by its end where it begins with a dot.
ALSO: dict[str, Any] = {
    "out": str,
    "path": str | list[str],
    "data.path": str | list[str],
    "replay.path": str | None,
    "checkpoint": str | None,
    "init_from": str | None,
    "init_parts": list[str] | None,
    "merge": list[str] | None,
    "instructions": list[str],
    "title": str | None,
    "view": str | None,
    "episodes": list[int] | None,
    "chains": int | str,
    "seconds": float,
    "delay_ms": float,
    "robot.check": dict[str, Any] | None,
    ".foresight.scales": int | None,
    ".understanding.weights": str | None,
    ".vision.weights": str | None,
}
# Configs of LeRobot's own classes, which check them.
FOREIGN = ("robot.world.robot.", "teleop.device.")

KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a group of keys",
    NoneType: "null",
}  # fmt: skip
EXAMPLES = {bool: True, int: 1, float: 0.5, str: "name", list: [], dict: {}, NoneType: None}
ABSENT = object()


def require_kinds(given: DictConfig, default: DictConfig, keys: Iterable[str], prefix: str = "") -> None:
    """Raises UserError for the first of `keys` (dotted) whose value in `given` is of a kind that it does not take, or that a
    group of READERS does not have.

    default: the config without what was typed. prefix: what the user typed before the keys.
    """
    for key in keys:
        value, usual = _plain(given, key), _plain(default, key)
        if value is ABSENT or (type(value) is type(usual) and kind(value) in (bool, int, float, str)):
            continue  # without a look at the annotations, whose modules take their time to import
        place, _, name = key.rpartition(".")
        if place in READERS and name not in (known := {*_options(None, place), *OmegaConf.select(default, place)}):
            raise UserError(f"{place} has no key {name!r}: take one of {', '.join(sorted(known))}.")
        for sentence in _misfits(prefix, key, value, usual, _hint(given, key)):
            raise UserError(sentence)


def kind(value: Any) -> type:
    """The kind of a plain value, one of KINDS."""
    return next(one for one in KINDS if isinstance(value, one))


def taken(hint: Any) -> set[type] | None:
    """The kinds that an annotation takes; None where it says nothing (Any, or a class that no config can write)."""
    if get_origin(hint) in (Union, UnionType):
        known = [kinds for one in get_args(hint) if (kinds := taken(one)) is not None]
        return set().union(*known) if known else None
    if get_origin(hint) is Literal:
        return {kind(value) for value in get_args(hint)}
    plain = get_origin(hint) or hint
    if plain in (bool, int, float, NoneType):
        return {plain}
    if not isinstance(plain, type) or plain is object:
        return None
    groups = {str: (str, Path), dict: (Mapping,), list: (list, tuple, Collection)}
    return next(({one} for one, classes in groups.items() if issubclass(plain, classes) or plain in classes), None)


def _misfits(prefix: str, key: str, value: Any, default: Any, hint: Any) -> Iterator[str]:
    """A sentence for every value at and under `key` that is not taken."""
    if (
        key.startswith(FOREIGN)
        or value == "???"
        or (kind(value) not in (list, dict) and value == default and type(value) is type(default))
    ):
        return
    kinds = taken(hint)
    if kinds is None and default is not None and default is not ABSENT:
        kinds = {kind(default)}
    if kinds is not None and not (kind(value) in kinds or (kind(value) is int and float in kinds)):
        yield _sentence(prefix + key, value, kinds, default)
    elif isinstance(value, dict):
        known = default if isinstance(default, dict) else {}
        hints = _options(value.get("_target_"), key)
        for name, one in value.items():
            place = f"{key}.{name}"
            yield from _misfits(prefix, place, one, known.get(name, ABSENT), _first(hints.get(name), _item(hint), _also(place)))
    elif isinstance(value, list):
        known = default if isinstance(default, list) and len({kind(one) for one in default}) == 1 else [ABSENT]
        for i, one in enumerate(value):
            if one is not None:  # an end that is left open
                yield from _misfits(prefix, f"{key}.{i}", one, known[min(i, len(known) - 1)], _item(hint))


def _sentence(key: str, value: Any, kinds: set[type], default: Any) -> str:
    wanted = " or ".join(words for one, words in KINDS.items() if one in kinds)
    if isinstance(value, float) and int in kinds and value.is_integer():
        example: Any = int(value)
    elif list in kinds and isinstance(value, str):
        example = [value]
    elif str in kinds and kind(value) in (bool, int, float):
        return (
            f"{key}={_typed(value)} is {KINDS[kind(value)]}, but {key} takes {wanted}: write {key}=\"'{_typed(value)}'\", say."
        )
    elif default is not None and default is not ABSENT:
        example = default
    else:
        example = EXAMPLES[next(one for one in KINDS if one in kinds)]
    return f"{key}={_typed(value)} is {KINDS[kind(value)]}, but {key} takes {wanted}: write {key}={_typed(example)}, say."


def _typed(value: Any) -> str:
    """As on the command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_typed(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    return value if isinstance(value, str) else str(value) if isinstance(value, float) else json.dumps(value)


def _hint(config: DictConfig, key: str) -> Any:
    """The annotation of the key at this place; None where there is none."""
    names, hint = key.split("."), None
    for depth, name in enumerate(names):
        place = ".".join(names[:depth])
        hints = _options(_plain(config, f"{place}._target_" if place else "_target_"), place)
        hint = _first(hints.get(name), _item(hint), _also(".".join(names[: depth + 1])))
    return hint


def _options(target: Any, place: str) -> dict[str, Any]:
    """The annotations of what reads the keys at a place, by their names."""
    target = target if isinstance(target, str) else READERS.get(place)
    if target is None:
        return {}
    try:
        parameters = inspect.signature(get_object(target), eval_str=True).parameters.values()
    except (HydraException, ImportError, NameError, TypeError, ValueError):  # told when the part is built
        return {}
    return {p.name: p.annotation for p in parameters if p.kind is not p.VAR_KEYWORD and p.annotation is not p.empty}


def _item(hint: Any) -> Any:
    """The annotation of what a mapping or a sequence holds."""
    for one in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_args(one) and (taken(one) or set()) & {list, dict}:
            return get_args(one)[1 if taken(one) == {dict} else 0]
    return None


def _also(place: str) -> Any:
    return next((hint for end, hint in ALSO.items() if place == end or (end[0] == "." and place.endswith(end))), None)


def _first(*hints: Any) -> Any:
    """The first that says something."""
    return next((hint for hint in hints if taken(hint) is not None), None)


def _plain(config: DictConfig, key: str) -> Any:
    """The value at a place; ABSENT where there is none, or none that can be told."""
    try:
        value = OmegaConf.select(config, key, default=ABSENT)
        return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
    except OmegaConfBaseException:
        return ABSENT
