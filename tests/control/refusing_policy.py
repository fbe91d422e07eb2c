"""A policy for the toy arm that knows what it can do."""

from toy_policy import ToyPolicy

from vla.policy import Discerning


class Discerner(ToyPolicy):
    def discerns(self):
        return True

    def refusal(self, sentence):
        return f"{sentence!r} is refused: say 'one'." if "fridge" in sentence else None


assert isinstance(Discerner(), Discerning)
