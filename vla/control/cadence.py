"""How well time was kept: for each part of a cycle a histogram of fixed size, so that a day costs what a minute does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

RATIO = 1.02
"""Neighbouring bins differ by 2 %, which is how exact a quantile is."""
BINS = 1 + math.ceil(math.log(1e9) / math.log(RATIO))  # from a microsecond to a quarter of an hour
PARTS = {
    "lateness": "a cycle's beginning after its deadline",
    "sensing": "reading the robot",
    "inference": "observation handed over to chunk received",
    "reaction": "a cycle's deadline to its command",
    "command": "sending the command",
}


class Histogram:
    """Counts of durations; `worst` is exact."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.worst = 0.0

    def add(self, ns: float) -> None:
        microseconds = max(ns / 1e3, 1.0)
        self.counts[min(BINS - 1, int(math.log(microseconds) / math.log(RATIO)))] += 1
        self.worst = max(self.worst, ns / 1e6)

    def quantile(self, share: float) -> float:
        """Milliseconds; nan where nothing was counted."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(share * total)))
        return min(RATIO ** (place + 0.5) / 1e3, self.worst)


class Cadence:
    """Collects the parts of cycles. `cycles`: how many; `seconds`: over which time."""

    def __init__(self) -> None:
        self.parts = {name: Histogram() for name in PARTS}
        self.cycles, self.missed, self.seconds = 0, 0, 0.0

    def add(self, part: str, ns: float) -> None:
        self.parts[part].add(ns)

    def table(self) -> dict[str, Any]:
        """Everything as a JSON-able dict; times in milliseconds."""
        rows = {
            name: {"p50": h.quantile(0.5), "p99": h.quantile(0.99), "worst": h.worst, "count": int(h.counts.sum())}
            for name, h in self.parts.items()
            if h.counts.any()
        }
        hz = self.cycles / self.seconds if self.seconds else 0.0
        return {"hz": hz, "cycles": self.cycles, "missed": self.missed, "seconds": self.seconds, "milliseconds": rows}


def lines(table: dict[str, Any]) -> list[str]:
    """The table for people."""
    head = f"{table['hz']:.3f} Hz over {table['seconds']:.1f} s: {table['cycles']} cycles, {table['missed']} missed"
    rows = [f"{'milliseconds':<12}{'p50':>9}{'p99':>9}{'worst':>9}"]
    for name, row in table["milliseconds"].items():
        rows.append(f"{name:<12}{row['p50']:9.2f}{row['p99']:9.2f}{row['worst']:9.2f}   {PARTS[name]}")
    return [head, *rows]
