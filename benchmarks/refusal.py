"""Which instructions are refused: false refusals of held-out wording, and the share caught of those that nobody can follow.

    python -m benchmarks.refusal

The policy is one trained on envs/playtable's training sentences, with MiniLM as its frozen text encoder; its weights do not
matter. Sentences: the benchmark's own and the held-out wording, none of which may be refused, and the foreign ones of
envs/playtable/instructions.toml. Every other foreign sentence, from the second on, and every other held-out wording (with
all its colours and sides) calibrate: the threshold is the highest at which under 2 % of the calibrating held-out sentences are
refused. The rest judge it. Three scores are compared: similarity to the nearest training sentence, the odds of
policies/nn/refusal.py alone, and these with its rules about words, which is what policies do. Writes
benchmarks/results/refusal.md.

The categories of COCO came into elsewhere.toml after a first measurement, in which 43.9 % of the sentences that name what the
scene lacks were caught, so that the share here may flatter a little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine
from envs.playtable.language import TURNS, foreign, instructions
from envs.playtable.state import COLOURS
from envs.playtable.tasks import TASKS
from policies.nn.refusal import LEAST_ODDS, Refusal
from policies.nn.text import Text
from vla.evaluation.statistics import wilson

FALSE = 0.02
"""The share of held-out sentences of which fewer may be refused."""
INFINITE = 1e9


def threshold(scores: Sequence[float]) -> float:
    """The highest score below which less than a share FALSE of these lie."""
    ordered = np.sort(scores)
    return float(ordered[int(np.ceil(FALSE * len(ordered))) - 1])


def family(task: str) -> str:
    """What tasks have in common that differ in colour or side alone, and share their wording."""
    return "_".join(word for word in task.split("_") if word not in (*COLOURS, *TURNS))


def percent(refused: Sequence[bool]) -> str:
    rate = wilson(int(np.sum(refused)), len(refused))
    return f"{100 * rate['value']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] of {len(refused)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/refusal.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = Text({"name": "minilm", "pooling": 0}, 8)
    known = [sentence for task in TASKS for sentence in instructions(task, "train")]
    vector = cache(lambda sentence: text.pooled([sentence])[0])  # each sentence is scored several times
    refusal = Refusal(known, lambda sentences: torch.stack([vector(s) for s in sentences]), LEAST_ODDS["minilm"])
    vectors = torch.stack([vector(sentence) for sentence in known])

    def similarity(sentence: str) -> float:
        return float((vectors @ vector(sentence)).max())

    def odds_and_words(sentence: str) -> float:
        return -INFINITE if refusal.strange(sentence) else refusal.odds(sentence)

    families = list(dict.fromkeys(map(family, TASKS)))

    def wording(half: int) -> list[str]:
        lines = ((t, j, s) for t in TASKS for j, s in enumerate(instructions(t, "heldout")))
        return [s for t, j, s in lines if (families.index(family(t)) + j) % 2 == half]

    halves = [
        {"held-out wording": wording(half)} | {kind: list(lines[half::2]) for kind, lines in foreign().items()}
        for half in (1, 0)
    ]
    judging = {"the benchmark's own sentences": [instructions(task, "validation")[0] for task in TASKS], **halves[1]}
    scores: dict[str, Callable[[str], float]] = {
        "similarity": similarity,
        "odds": refusal.odds,
        "odds and words": odds_and_words,
    }
    names = {"absent": "names what the scene lacks", "none": "no task at all"}
    rows = ["| score | threshold | " + " | ".join(names.get(kind, kind) for kind in judging) + " |"]
    rows.append("|---" * (len(judging) + 2) + "|")
    for name, score in scores.items():
        line = threshold([score(s) for s in halves[0]["held-out wording"]])
        shares = [percent([score(s) < line for s in lines]) for lines in judging.values()]
        rows.append(f"| {name} | {line:.2f} | " + " | ".join(shares) + " |")
    refusal.least_odds = line  # as calibrated just now
    missed = {names[kind]: [s for s in judging[kind] if refusal.reason(s) is None] for kind in foreign()}
    falsely = [s for kind in judging if kind not in foreign() for s in judging[kind] if refusal.reason(s)]
    notes = [
        "Shares refused, with 95 % Wilson intervals. Sentences of one wording are not independent, so that the intervals of "
        f"held-out wording are narrower than the truth. Calibrating: {len(halves[0]['held-out wording'])} held-out and "
        f"{sum(len(halves[0][kind]) for kind in foreign())} foreign sentences.",
        *(f"Not caught ({kind}): " + "; ".join(sentences) + "." for kind, sentences in missed.items()),
        "Falsely refused: " + ("; ".join(falsely) or "none") + ".",
        f"The last row is what policies do; they use the threshold {LEAST_ODDS['minilm']} (LEAST_ODDS).",
        "An example: " + str(refusal.reason("lift the green block")),
    ]
    print("\n".join([*rows, "", *notes]))
    purpose = (__doc__ or "").split("\n\n")
    whole = [
        "# Refusal",
        purpose[0],
        *(part.strip() for part in purpose[2:4]),
        "    python -m benchmarks.refusal",
        machine(),
        "\n".join(rows),
        *notes,
    ]
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text("\n\n".join(whole) + "\n")


if __name__ == "__main__":
    main()
