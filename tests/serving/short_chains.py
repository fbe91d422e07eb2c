"""The playtable's chains with turns that are short and end at arbitrary moments, for networks that were never trained."""

from envs.playtable.benchmark import Benchmark


class ShortChains(Benchmark):
    max_steps = 30
    asked = 0

    def solved(self, task, start, end):
        """At every eleventh question."""
        self.asked += 1
        return self.asked % 11 == 0
