"""Does the robot do what is said? Held-out words and another task's words from the same starts."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from pointworld import Benchmark, PointPolicy, PointWorld, near
from test_run import config

from envs.playtable.benchmark import Benchmark as Playtable
from envs.playtable.chains import Condition, effects
from vla.evaluation import language
from vla.evaluation.run import merge, run, write
from vla.executor import RecedingHorizon
from vla.rollout import Timing
from vla.spec import UserError


def play(worlds, numbers: Iterable[int] = range(16), policy=None, benchmark=None, split="validation", seed=0):
    rules = (RecedingHorizon(4), split, seed, Timing())
    found = language.play(PointWorld(worlds), policy or PointPolicy(), benchmark or Benchmark(), list(numbers), *rules)
    return {(trial["chain"], trial["kind"]): trial for trial in found}


def test_trials_do_not_depend_on_the_number_of_worlds_or_on_order():
    alone = play(1)
    assert len(alone) == 16 * 2
    assert {trial["did"] for trial in alone.values()} == {"said", "likely", "neither"}
    assert play(5) == alone
    assert play(3, reversed(range(16))) == alone
    assert play(2, range(4)) | play(3, range(4, 16)) == alone
    assert play(3, seed=1) != alone


def test_what_is_said_differs_as_the_kind_wants():
    chains = Benchmark().chains()
    for (number, kind), trial in play(4).items():
        colour = trial["said"].removeprefix("reach_")
        assert trial["likely"] == chains[number].tasks[0]
        assert trial["instruction"].split()[-1] == colour
        if kind == "heldout":
            assert trial["said"] == trial["likely"]
            assert trial["instruction"].split()[0] in ("travel", "wander")
            assert trial["did"] in ("said", "neither")
        else:
            assert trial["said"] != trial["likely"]
            assert not near(tuple(chains[number].robot_obs), trial["said"])
            assert trial["instruction"].startswith("go to")


class Stubborn(PointPolicy):
    """Does not listen: it walks to the first goal of the chain that begins where it stands, or, unsure, nowhere."""

    def act(self, observation, memory):
        chunks, memory = super().act({**observation, "task": ["go to red"] * len(observation["task"])}, memory)
        return chunks, memory


def test_a_policy_that_does_not_listen_does_what_is_likely():
    wrong = dict.fromkeys(("wrong", "noise"), 0.0)
    obedient = [trial["did"] for trial in play(4, policy=PointPolicy(**wrong)).values()]
    assert set(obedient) == {"said"}
    stubborn = play(4, policy=Stubborn(**wrong)).values()
    for trial in stubborn:
        red = [task for task in ("said", "likely") if trial[task] == "reach_red"]
        assert trial["did"] == (red[0] if red else "neither")


def test_a_benchmark_of_one_task_per_start_is_told():
    class Lonely(Benchmark):
        alternatives: Any = property()  # type: ignore[assignment]

    with pytest.raises(UserError, match=r"language=true .* points has not"):
        play(1, range(2), benchmark=Lonely())


def test_slices_merge_and_the_report_shows_intervals(tmp_path):
    whole, _ = run(config(chains=8, language=True, workers=2))
    for name, chains in (("a", "0:3"), ("b", "3:8")):
        write(str(tmp_path / name), *run(config(chains=chains, language=True)))
    result, films = merge([str(tmp_path / "b"), str(tmp_path / "a")])
    assert result["trials"] == whole["trials"]
    summary = write(str(tmp_path / "all"), result, films)["language"]
    swapped = [trial["did"] for trial in whole["trials"] if trial["kind"] == "swapped"]
    assert summary["swapped"]["trials"] == 8
    for deed, count in Counter(swapped).items():
        rate = summary["swapped"][deed]
        assert rate["value"] == count / 8
        assert 0 <= rate["low"] < rate["value"] < rate["high"] <= 1 or rate["value"] in (0, 1)
    assert sum(row["trials"] for row in summary["tasks"].values()) == 8
    firsts = np.mean([chain["attempts"][0]["solved"] for chain in whole["chains"]])
    assert summary["own"]["said"]["value"] == firsts
    page = (tmp_path / "all" / "report.html").read_text()
    assert "another task&#x27;s words: did what was likely" in page
    assert json.loads((tmp_path / "all" / "results.json").read_text())["summary"]["language"] == summary


def test_slices_with_and_without_trials_do_not_merge(tmp_path):
    write(str(tmp_path / "a"), *run(config(chains="0:2", language=True)))
    write(str(tmp_path / "b"), *run(config(chains="2:4")))
    with pytest.raises(UserError, match=r"language is True in .* but False"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")])


def test_the_playtable_knows_other_tasks_of_every_start():
    benchmark = Playtable()
    for chain in benchmark.chains()[:200]:
        others = benchmark.alternatives(chain)
        assert len(others) >= 5
        assert chain.tasks[0] not in others
        assert all(effects(task, Condition(**chain.initial)) for task in others)
