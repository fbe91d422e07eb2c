"""Rollouts on the way: the policy in training plays some of a benchmark's chains."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from vla.evaluation.long_horizon import chain_numbers, evaluate
from vla.executor import RecedingHorizon


class Chains:
    """Called with a policy, plays the same chains each time, in this process, with the cameras' sizes of its training data.

    env: a config with `world` and `benchmark`, as conf/env/*.yaml. chains: how many, or a slice such as 100:120. execute:
    actions of a chunk that are executed before the policy is asked again. split: the instructions' wording.
    Gives the average length and the share of chains with at least 1 to 5 tasks solved in a row.
    """

    def __init__(self, env: DictConfig, chains: int | str, execute: int, split: str = "validation") -> None:
        self.env, self.split, self.executor = env, split, RecedingHorizon(execute)
        self.benchmark = instantiate(env.benchmark)
        self.numbers = chain_numbers(chains, len(self.benchmark.chains()))

    def __call__(self, policy: Any) -> dict[str, float]:
        size = {name: list(size) for name, size in policy.spec.cameras.items()}
        worlds = min(self.env.world.num_worlds, len(self.numbers))
        world = instantiate(self.env.world, cameras=size, num_worlds=worlds, _convert_="all")
        try:
            results = list(evaluate(world, policy, self.benchmark, self.numbers, self.executor, self.split))
        finally:
            world.close()
        lengths = Counter(result["solved"] for result in results)
        in_a_row = {f"{k}_in_a_row": sum(lengths[n] for n in range(k, 6)) / len(results) for k in range(1, 6)}
        return {"average_length": float(np.mean([result["solved"] for result in results])), **in_a_row}
