import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vla.evaluation.statistics import bootstrap_mean, summarise, wilson


@given(attempts=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_agrees_with_scipy(attempts, share):
    successes = round(attempts * share)
    ours, theirs = wilson(successes, attempts), binomtest(successes, attempts).proportion_ci(0.95, method="wilson")
    assert ours["value"] == successes / attempts
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bootstrap_interval_is_about_two_standard_errors_wide():
    lengths = np.random.default_rng(0).integers(0, 6, 1000)
    interval = bootstrap_mean(lengths)
    error = lengths.std() / np.sqrt(1000)
    assert interval["value"] == lengths.mean()
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert bootstrap_mean(lengths[::-1]) == interval


def chain(*solved):
    names = ("a", "b", "c")
    attempts = [{"task": names[i], "solved": s, "steps": 10 * (i + 1)} for i, s in enumerate(solved)]
    return {"tasks": names, "attempts": attempts}


def test_summary_counts_what_was_really_tried():
    summary = summarise([chain(True, True, True), chain(True, False), chain(False), chain(True, True, False)])
    assert summary["average_length"]["value"] == 6 / 4
    assert [k["value"] for k in summary["in_a_row"]] == [0.75, 0.5, 0.25]
    assert [(t["successes"], t["attempts"]) for t in summary["tasks"].values()] == [(3, 4), (2, 3), (1, 2)]
    assert summary["tasks"]["c"]["mean_steps"] == 30
    assert summary["infeasible"] == []


def test_chains_that_cannot_be_done_count_and_are_told():
    chains = [{"chain": 7, "feasible": False, **chain(True, False)}, {"chain": 8, "feasible": True, **chain(True, True, True)}]
    summary = summarise(chains)
    assert summary["infeasible"] == [7]
    assert summary["average_length"]["value"] == 2
