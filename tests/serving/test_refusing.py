"""A server that refuses instructions which its policy knows nothing of."""

import pytest
from pointworld import PointPolicy
from served import Client, serving
from test_server import local, seen

from vla.policy import Discerning, ready_to_refuse


class Discerner(PointPolicy):
    """Knows its goals alone."""

    def discerns(self):
        return True

    def refusal(self, sentence):
        known = ("red", "green", "blue", "white")
        return None if sentence.endswith(known) else f"{sentence!r} is like nothing that is known: say 'go to red'."


def test_a_refused_instruction_is_answered_with_its_reason_and_changes_nothing():
    assert isinstance(Discerner(), Discerning)
    with serving(Discerner(), refuse=True) as port, Client(port) as client:
        first = client.ask(seen(task="go to blue", reset=True, seed=3))
        assert client.ask(seen(task="open the fridge")) == "'open the fridge' is like nothing that is known: say 'go to red'."
        second = client.ask(seen(task="go to blue"))
    expected = local(Discerner(), 3, seen(task="go to blue"), seen(task="go to blue"))
    assert (first["actions"] == expected[0]).all()
    assert (second["actions"] == expected[1]).all()


@pytest.mark.parametrize(("policy", "refuse"), [(Discerner(), False), (PointPolicy(), True)])
def test_who_does_not_refuse_or_cannot_acts(policy, refuse):
    with serving(policy, refuse=refuse) as port, Client(port) as client:
        assert "actions" in client.ask(seen(task="open the red"))
        assert isinstance(client.ask(seen(task="go to white")), dict)


def test_others_in_the_batch_are_answered():
    with serving(Discerner(), refuse=True, gather_ms=200) as port, Client(port) as one, Client(port) as other:
        for _ in range(2):
            one.send(seen(task="go to red", reset=True, seed=1))
            other.send(seen(task="make tea", reset=True, seed=1))
            assert "actions" in one.receive()
            assert "make tea" in other.receive()


def test_what_is_refused_is_told():
    assert "cannot tell" in ready_to_refuse(PointPolicy())
    assert ready_to_refuse(Discerner()).startswith("refuses instructions")
    unsure = Discerner()
    unsure.discerns = lambda: False
    assert "does not say" in ready_to_refuse(unsure)
