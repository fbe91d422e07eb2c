"""From chains to numbers: success of 1..5 in a row and of each task with Wilson intervals, average length bootstrapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

METHOD = "95 % intervals: Wilson for rates; percentile bootstrap over chains (10 000 resamples, seed 0) for the average length"
RESAMPLES = 10_000
Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson(successes: int, attempts: int) -> dict[str, float]:
    """A rate with its 95 % Wilson score interval, all in [0, 1]; the whole of it where nothing was attempted."""
    if attempts == 0:
        return {"value": float("nan"), "low": 0.0, "high": 1.0}
    rate = successes / attempts
    centre = (rate + Z**2 / (2 * attempts)) / (1 + Z**2 / attempts)
    half = Z / (1 + Z**2 / attempts) * sqrt(rate * (1 - rate) / attempts + Z**2 / (4 * attempts**2))
    low = 0.0 if successes == 0 else centre - half
    return {"value": rate, "low": low, "high": 1.0 if successes == attempts else centre + half}


def bootstrap_mean(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % percentile bootstrap interval; the same values in another order give the same interval."""
    numbers, counts = np.unique(np.asarray(values, float), return_counts=True)
    total = counts.sum()
    drawn = np.random.default_rng(0).multinomial(total, counts / total, size=RESAMPLES)
    low, high = np.quantile(drawn @ numbers / total, [0.025, 0.975])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}


def summarise(chains: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of a run from its chains, each with `attempts`: a list of {task, solved, steps} in order.

    Gives `chains`, `infeasible` (numbers of those that cannot be done to their end; they count like all others),
    `average_length`, `in_a_row` (as long as the longest chain), `tasks` (name -> successes, attempts, rate with interval, and
    mean steps of the successes), and `method`.
    """
    lengths = [sum(a["solved"] for a in chain["attempts"]) for chain in chains]
    longest = max(len(chain["tasks"]) for chain in chains)
    tasks: dict[str, dict[str, Any]] = {}
    for name in sorted({a["task"] for chain in chains for a in chain["attempts"]}):
        tried = [a for chain in chains for a in chain["attempts"] if a["task"] == name]
        steps = [a["steps"] for a in tried if a["solved"]]
        tasks[name] = {
            "successes": len(steps),
            "attempts": len(tried),
            **wilson(len(steps), len(tried)),
            "mean_steps": float(np.mean(steps)) if steps else None,
        }
    return {
        "chains": len(chains),
        "infeasible": [chain["chain"] for chain in chains if not chain.get("feasible", True)],
        "average_length": bootstrap_mean(lengths),
        "in_a_row": [wilson(sum(n >= k for n in lengths), len(lengths)) for k in range(1, longest + 1)],
        "tasks": tasks,
        "method": METHOD,
    }
