"""The protocol on the real benchmark: the expert in the playtable."""

import envs.playtable
from envs.playtable.benchmark import Benchmark
from envs.playtable.experts import Expert
from vla.evaluation.long_horizon import evaluate
from vla.executor import RecedingHorizon


def chains(worlds, numbers):
    benchmark = Benchmark()
    benchmark.max_steps = 80
    world = envs.playtable.make("D", worlds, cameras={})
    results = evaluate(world, Expert(), benchmark, numbers, RecedingHorizon())
    return {result["chain"]: result for result in results}


def test_a_chain_ends_the_same_alone_and_in_company():
    numbers = (0, 1, 2, 3, 704)
    alone = chains(1, numbers)
    assert [alone[number]["feasible"] for number in numbers] == [True, True, True, True, False]
    assert any(result["solved"] > 1 for result in alone.values())
    assert chains(3, reversed(numbers)) == alone
