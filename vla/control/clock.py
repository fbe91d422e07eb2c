"""Absolute deadlines on the monotonic clock."""

from __future__ import annotations

import os
import time

SPIN_NS = 150_000
"""The end of a wait is spun through, because a sleep may end late by a timer's slack."""


class Clock:
    """Cycles of 1/hz seconds from `start` on. Deadline k lies at start + k / hz exactly, so nothing drifts.

    A cycle that took too long does not shift the later ones: the deadlines that it ran through are counted as missed.
    """

    def __init__(self, hz: float) -> None:
        self.hz = hz
        self.missed = 0
        self.start()

    def start(self) -> None:
        """The first cycle begins now."""
        self._begin, self._cycle = time.monotonic_ns(), 0

    def deadline(self, cycle: int) -> int:
        return self._begin + round(cycle * 1e9 / self.hz)

    @property
    def now(self) -> int:
        """When the present cycle began by plan, ns."""
        return self.deadline(self._cycle)

    @property
    def overdue(self) -> bool:
        """Whether the present cycle is over by plan."""
        return time.monotonic_ns() >= self.deadline(self._cycle + 1)

    def wait(self) -> int:
        """Until the next deadline; gives by how many ns it was passed. Deadlines in the past are missed."""
        elapsed = time.monotonic_ns() - self._begin
        due = max(self._cycle + 1, int(elapsed * self.hz / 1e9))
        self.missed += due - self._cycle - 1
        self._cycle = due
        deadline = self.deadline(due)
        if (rest := deadline - SPIN_NS - time.monotonic_ns()) > 0:
            time.sleep(rest / 1e9)
        while (late := time.monotonic_ns() - deadline) < 0:
            pass
        return late


def prefer(priority: int) -> str:
    """Let this thread go before ordinary ones (SCHED_FIFO); says what came of it. Threads and processes that it starts do not
    inherit it."""
    if not priority:
        return "ordinary priority (priority=0)"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except (AttributeError, PermissionError, OSError) as error:
        return f"ordinary priority ({error}): other processes can make cycles late"
    return f"real-time priority {priority}"
