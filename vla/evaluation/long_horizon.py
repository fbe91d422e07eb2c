"""CALVIN's long-horizon protocol (LH-MTLC) as scripts for the rollout loop.

A chain starts with one reset. Each of its tasks has a limit of control steps; the first that is not solved in time ends the
chain. Between tasks the world goes on as it is (robot in motion), while the policy starts afresh. After every control step
only the wanted task is asked about, against the state in which its turn began.

Everything that is random in a chain is drawn from the run's seed and the chain's number alone, so a chain's result does not
depend on how many worlds run, in which order, or in which process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import VectorEnv

from vla.executor import Executor
from vla.policy import Policy
from vla.rollout import Follow, Job, Recorder, Reset, Script, Timing, rollout
from vla.spec import UserError


class Chain(Protocol):
    """Tasks to do in a row from one start.

    `feasible`, where a chain has it, is False for one that nobody could do to its end: it is played, and said to be so.
    """

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def start(self) -> Mapping[str, np.ndarray]:
        """The world's reset options."""
        ...


class Benchmark(Protocol):
    """What a benchmark knows: its chains, when a task is solved, and how it is worded."""

    name: str
    max_steps: int
    """Control steps that each task may take."""

    def chains(self) -> Sequence[Chain]: ...

    def solved(self, task: str, start: Any, end: Any) -> bool: ...

    def instructions(self, task: str, split: str) -> Sequence[str]: ...


Attempts = list[dict[str, Any]]
MakeRecorder = Callable[[int, Chain, Attempts], Recorder | None]


def no_recorder(number: int, chain: Chain, attempts: Attempts) -> Recorder | None:
    return None


def play_chain(number: int, chain: Chain, benchmark: Benchmark, attempts: Attempts, split: str, seed: int) -> Script:
    """The script of one chain. Returns `attempts`, which grows by {task, instruction, solved, steps} as tasks end."""
    state = yield Reset(chain.start)
    for turn, task in enumerate(chain.tasks):
        start, solved, steps = state, False, 0
        policy_seed = int(np.random.SeedSequence([seed, number, turn]).generate_state(1)[0])
        sentences = benchmark.instructions(task, split)
        follow = Follow(sentences[(number + turn) % len(sentences)], policy_seed)
        while not solved and steps < benchmark.max_steps:
            state = yield follow
            steps += 1
            solved = benchmark.solved(task, start, state)
        attempts.append({"task": task, "instruction": follow.instruction, "solved": solved, "steps": steps})
        if not solved:
            break
    return attempts


def evaluate(
    world: VectorEnv,
    policy: Policy,
    benchmark: Benchmark,
    numbers: Iterable[int],
    executor: Executor,
    split: str = "validation",
    seed: int = 0,
    record: MakeRecorder = no_recorder,
    timing: Timing | None = None,
    delay_s: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Play the chains with these numbers; yields {chain, tasks, feasible, solved, attempts} of each in the order of ending.

    record: gives a chain's recorder, or None. delay_s: see `vla.rollout.rollout`.
    """
    chains = benchmark.chains()
    waiting = iter(numbers)

    def next_job(world_index: int) -> Job | None:
        number = next(waiting, None)
        if number is None:
            return None
        chain, attempts = chains[number], []
        script = play_chain(number, chain, benchmark, attempts, split, seed)
        return Job(number, script, record(number, chain, attempts))

    for job, attempts in rollout(world, policy, next_job, executor, timing, delay_s):
        chain = chains[job.key]  # type: ignore[call-overload]
        result = {"chain": job.key, "tasks": list(chain.tasks), "feasible": getattr(chain, "feasible", True)}
        yield {**result, "solved": sum(a["solved"] for a in attempts), "attempts": attempts}


def chain_numbers(chains: int | str, available: int) -> range:
    """The chains meant by a number ("1000": the first thousand) or a slice ("250:500"); UserError if there are not so many."""
    first, _, last = str(chains).rpartition(":")
    try:
        numbers = range(int(first or 0), int(last))
    except ValueError:
        raise UserError(f"chains={chains!r} is neither a number nor a slice: write chains=1000 or chains=250:500.") from None
    if not numbers or numbers[0] < 0 or numbers[-1] >= available:
        raise UserError(
            f"chains={chains} asks for chains outside 0:{available}: ask for at least one, and no more than there are."
        )
    return numbers
