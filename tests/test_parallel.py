import os

import pytest

from vla.parallel import processes, spread
from vla.spec import UserError
from vla.training.logging import available_cores


def count(share):
    for number in share:
        if number == "mistake":
            raise UserError("the value is wrong: mend it.")
        if number == "fault":
            raise ValueError("a fault")
        if number == "kill":
            os.kill(os.getpid(), 9)
        yield number, os.getpid()


def test_shares_are_worked_on_side_by_side_and_everything_comes_back():
    results = list(spread(count, [range(5), range(5, 9)]))
    assert sorted(number for number, _ in results) == list(range(9))
    assert len({process for _, process in results} - {os.getpid()}) == 2


def test_one_share_needs_no_process():
    assert {process for _, process in spread(count, [range(3)])} == {os.getpid()}


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("mistake", UserError, "the value is wrong: mend it."),
        ("fault", RuntimeError, "ValueError: a fault"),
        ("kill", RuntimeError, "ended with status -9"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told_here(bad, error, words):
    with pytest.raises(error, match=words):
        list(spread(count, [[1, bad], [2]]))


def test_the_number_of_processes_is_what_is_asked_for_within_what_there_is_to_do():
    assert processes(3, 10) == 3
    assert processes(3, 2) == 2
    assert processes(0, 10**6) == available_cores()
    with pytest.raises(UserError, match="workers is -1: give a number"):
        processes(-1, 10)
