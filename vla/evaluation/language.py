"""Does the robot do what is said? Trials of one task from the starts of a benchmark's chains, as scripts for the rollout loop.

    heldout    the chain's first task, asked for in held-out words
    swapped    another task that can be done from the same start, asked for in the run's wording

A trial ends as soon as the task that was said is done, or the one that was likely (the chain's own first); or with the limit of
steps, when neither is. Whatever is random in a trial is drawn from the run's seed, the chain's number and the kind alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from vla.evaluation.long_horizon import Benchmark, Chain
from vla.evaluation.statistics import wilson
from vla.executor import Executor
from vla.policy import Policy
from vla.rollout import Follow, Job, Reset, Script, Timing, rollout
from vla.spec import UserError

KINDS = ("heldout", "swapped")
DEEDS = ("said", "likely", "neither")
DONE = {"said": "what was said", "likely": "what was likely", "neither": "neither"}
SPOKEN = {"own": "this wording", "heldout": "held-out words", "swapped": "another task's words"}


def play_trial(number: int, chain: Chain, benchmark: Benchmark, kind: str, split: str, seed: int) -> Script:
    """The script of one trial. Returns {chain, kind, said, likely, instruction, did: one of DEEDS, steps}.

    split: the wording of a swapped instruction. Raises UserError for a benchmark that does not know other tasks of a start.
    """
    rng = np.random.default_rng([seed, number, KINDS.index(kind)])
    likely = said = chain.tasks[0]
    if kind == "swapped":
        if (alternatives := getattr(benchmark, "alternatives", None)) is None:
            raise UserError(f"language=true asks for other tasks than {said!r}, which {benchmark.name} has not: leave it out.")
        said = str(rng.choice(alternatives(chain)))
    sentences = benchmark.instructions(said, split if kind == "swapped" else "heldout")
    follow = Follow(sentences[number % len(sentences)], int(rng.integers(2**32)))
    start = yield Reset(chain.start)
    did, steps = "neither", 0
    while did == "neither" and steps < benchmark.max_steps:
        state = yield follow
        steps += 1
        did = next((deed for deed, task in (("said", said), ("likely", likely)) if benchmark.solved(task, start, state)), did)
    return {
        "chain": number,
        "kind": kind,
        "said": said,
        "likely": likely,
        "instruction": follow.instruction,
        "did": did,
        "steps": steps,
    }


def play(
    world: VectorEnv,
    policy: Policy,
    benchmark: Benchmark,
    numbers: Sequence[int],
    executor: Executor,
    split: str,
    seed: int,
    timing: Timing,
    delay_s: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Play the trials of the chains with these numbers; yields what `play_trial` returns, in the order of ending."""
    chains = benchmark.chains()
    waiting = itertools.product(numbers, KINDS)

    def next_job(world_index: int) -> Job | None:
        number, kind = next(waiting, (None, ""))
        if number is None:
            return None
        return Job((number, kind), play_trial(number, chains[number], benchmark, kind, split, seed))

    yield from (trial for _, trial in rollout(world, policy, next_job, executor, timing, delay_s))


def describe(chains: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates with intervals of what was done, from chains and trials of one run; {} where there are no trials.

    {"own": of the chains' first tasks, "heldout", "swapped": each {"trials", "said", "likely", "neither"}, of which `likely` is
    only in "swapped"; "tasks": task said in a swapped trial -> {"trials", and how often each of DEEDS}}.
    """
    if not trials:
        return {}
    first = [{"did": "said" if chain["attempts"][0]["solved"] else "neither"} for chain in chains]
    heldout, swapped = ([t for t in trials if t["kind"] == kind] for kind in KINDS)
    own = ("said", "neither")
    rows = {"own": _rates(first, own), "heldout": _rates(heldout, own), "swapped": _rates(swapped, DEEDS)}
    tasks = {}
    for task in sorted({t["said"] for t in swapped}):
        some = [t["did"] for t in swapped if t["said"] == task]
        tasks[task] = {"trials": len(some), **{deed: some.count(deed) for deed in DEEDS}}
    return {**rows, "tasks": tasks}


def rates(table: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """(row of SPOKEN, deed, its rate with interval) of what `describe` found; nothing where it found nothing."""
    for kind in SPOKEN if table else ():
        yield from ((kind, deed, table[kind][deed]) for deed in DEEDS if deed in table[kind])


def _rates(trials: Sequence[Mapping[str, Any]], deeds: Sequence[str]) -> dict[str, Any]:
    return {"trials": len(trials), **{d: wilson(sum(t["did"] == d for t in trials), len(trials)) for d in deeds}}
