"""Which instructions not to act on: those of another scene, and those that ask for nothing.

A logistic regression on the frozen text encoder's vectors tells the sentences that the policy was trained on from what people
say elsewhere (elsewhere.toml). Encoders blur colours and things, so that two rules about words stand beside it: a thing that
elsewhere.toml knows and training never names is not here ("the fridge"), and a word that training often calls by a colour must
not be called by one that it never had there ("the green block"). All is made when it is first asked, in a few seconds, from
sentences alone, so that a checkpoint need hold nothing but them.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import softplus

LEAST_ODDS = {"minilm": -2.26}
"""Text encoder -> logarithm of the odds below which a sentence is refused, calibrated by benchmarks/refusal.py. An encoder
that is not here was not calibrated and refuses nothing."""
KNOWN = 400
"""So many of the training sentences are compared with; encoding more of them takes time and changes little."""
DECAY = 3e-4
OFTEN = 10
"""Sentences in which a word is called by a colour until it is known which colours it has."""
# fmt: off
COLOURS = frozenset({
    "red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown", "black", "white", "grey", "gray",
    "golden", "silver", "turquoise", "cyan", "magenta", "beige", "maroon", "crimson", "teal", "lilac",
})
# fmt: on


class Refusal:
    """Judges instructions for a policy that was trained on the sentences `known`.

    encode: sentences -> vectors (N, D) of length 1, of a frozen encoder. least_odds: see LEAST_ODDS.
    """

    def __init__(self, known: Sequence[str], encode: Callable[[Sequence[str]], Tensor], least_odds: float):
        known = sorted({sentence.strip() for sentence in known} - {""})
        self.least_odds, self._encode = least_odds, encode
        self._known = {sentence.lower() for sentence in known}
        self._called = Counter(pair for sentence in known for pair in set(_called(sentence)))
        self._colours = {colour for colour, _ in self._called}
        named = "\n".join(self._known)
        things = [thing for thing in elsewhere()[0] if not re.search(rf"\b{thing}(?:e?s)?\b", named)]
        self._things = re.compile(rf"\b({'|'.join(sorted(things, key=len, reverse=True))})(?:e?s)?\b")
        self._near = [known[i * len(known) // min(len(known), KNOWN)] for i in range(min(len(known), KNOWN))]
        self._vectors = encode(self._near).double()
        self._line = _fit(self._vectors, encode(elsewhere()[1]).double())
        self.reason = lru_cache(maxsize=1000)(self._reason)

    def odds(self, sentence: str) -> float:
        """Logarithm of the odds that a sentence is of the kind that the policy was trained on."""
        return float(self._encode([sentence])[0].double() @ self._line[:-1] + self._line[-1])

    def strange(self, sentence: str) -> str | None:
        """What a sentence names that is not known here ("fridge", "green block"), if anything."""
        if (found := self._things.search(sentence.lower())) is not None:
            return found[1]
        for colour, word in _called(sentence):
            others = sum(count for (_, other), count in self._called.items() if other == word)
            if colour not in self._colours or (others >= OFTEN and not self._called[colour, word]):
                return f"{colour} {word}".strip()
        return None

    def _reason(self, sentence: str) -> str | None:
        """Why not to act on a sentence, naming the nearest that the policy knows; None if it may be acted on."""
        if sentence.strip().lower() in self._known:
            return None
        strange = self.strange(sentence)
        if strange is None and any(map(str.isalpha, sentence)) and self.odds(sentence) >= self.least_odds:
            return None
        nearness = self._vectors @ self._encode([sentence])[0].double()
        nearest = " or ".join(repr(self._near[i]) for i in nearness.topk(min(2, len(self._near))).indices.tolist())
        why = f"nothing here is known as {strange!r}" if strange else "it is like nothing that this policy was trained on"
        return f"the instruction {sentence[:200]!r} is refused, because {why}: say something like {nearest}."


def elsewhere() -> tuple[list[str], list[str]]:
    """The things of elsewhere.toml; and what people say there: each thing in one frame, and talk."""
    lists = tomllib.loads(files("policies.nn").joinpath("elsewhere.toml").read_text("utf-8"))
    frames, things = lists["frames"], lists["things"]
    filled = [frames[i % len(frames)].format(x=x, y=things[(i + 17) % len(things)]) for i, x in enumerate(things)]
    return things, [*filled, *lists["talk"]]


def _fit(inside: Tensor, outside: Tensor) -> Tensor:
    """Weights (D,) and, last, offset of a logistic regression in which both sides weigh the same."""
    x = torch.cat([inside, outside])
    side = torch.cat([torch.ones(len(inside)), -torch.ones(len(outside))]).double()
    weight = torch.where(side > 0, 0.5 / len(inside), 0.5 / len(outside))
    line = torch.zeros(x.shape[1] + 1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [line], max_iter=300, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (weight * softplus(-side * (x @ line[:-1] + line[-1]))).sum() + DECAY * line[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    return line.detach()


def _called(sentence: str) -> list[tuple[str, str]]:
    """(colour, the word after it) wherever a colour is named; the word is "" at the end."""
    words = re.findall(r"[a-z']+", sentence.lower())
    return [(a, b) for a, b in pairwise([*words, ""]) if a in COLOURS]
