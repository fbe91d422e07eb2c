"""The budget and the learning rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.spec import UserError
from vla.training.schedule import Budget, learning_rate


def test_learning_rate_rises_then_falls_along_a_cosine():
    def at(step, fraction):
        return learning_rate(step, fraction, peak=2.0, warmup=4, floor=0.1)

    assert [at(step, 0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert at(100, 0.5) == pytest.approx(2.0 * 0.55)
    assert at(100, 1.0) == pytest.approx(0.2)
    assert learning_rate(0, 0.0, peak=3.0, warmup=0, floor=0.0) == 3.0


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(0, 1000), st.floats(0, 1))
def test_learning_rate_stays_between_nothing_and_its_peak(step, fraction, warmup, floor):
    rate = learning_rate(step, fraction, 1.0, warmup, floor)
    assert 0 <= rate <= 1
    assert rate >= floor * min(1, (step + 1) / max(warmup, 1)) - 1e-12


def test_each_budget_counts_its_own_unit():
    assert Budget(steps=200).fraction(50, 1e9, 1e9) == 0.25
    assert Budget(steps=200, cpu_seconds=10).fraction(10**9, 4, 1e9) == 0.4
    assert Budget(steps=200, minutes=2).fraction(10**9, 1e9, 30) == 0.25
    assert Budget(steps=5).fraction(7, 0, 0) == 1


def test_only_steps_are_reproducible_and_the_text_says_so():
    assert Budget(steps=5).reproducible
    assert not Budget(steps=5, minutes=1).reproducible
    assert "not give the same bits" in str(Budget(cpu_seconds=3))
    assert str(Budget(steps=5)) == "5 steps"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 0},
        {"minutes": -1},
        {"cpu_seconds": 1, "minutes": 1},
        {"steps": 3, "cpu_seconds": 0},
        {"minutes": math.nan},
    ],
)
def test_bad_budgets(wrong):
    with pytest.raises(UserError, match="trainer"):
        Budget(**wrong)
