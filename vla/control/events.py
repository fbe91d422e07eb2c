"""What happened, by name and number; and the board on which the parts of a cycle leave word for each other."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Events:
    """A log of named events with numbers: one JSON object a line in `path`, one line for people on stderr.

    Complete at every moment, whatever dies next. `listeners` are called with each event. Any thread may tell.
    """

    def __init__(self, path: str | Path, quiet: bool = False) -> None:
        self.path, self.quiet = Path(path), quiet
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", buffering=1)
        self._turn = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    def tell(self, name: str, **numbers: Any) -> None:
        event = {"time_ns": time.monotonic_ns(), "date": time.time(), "event": name, **numbers}
        with self._turn:
            self.counts[name] += 1
            self._file.write(json.dumps(event, default=str) + "\n")
            if not self.quiet:
                print(in_words(event), file=sys.stderr, flush=True)
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        self._file.close()


class Board:
    """Demands for a hold in this cycle, and notes for the recording. Both are taken once per cycle, by the loop's thread."""

    def __init__(self) -> None:
        self._demands: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, Any] = {}

    def demand(self, name: str, **numbers: Any) -> None:
        """The arm shall hold in this cycle."""
        self._demands[name] = numbers

    def note(self, **values: Any) -> None:
        self._notes.update(values)

    def take_demands(self) -> dict[str, dict[str, Any]]:
        demands, self._demands = self._demands, {}
        return demands

    def take_notes(self) -> dict[str, Any]:
        notes, self._notes = self._notes, {}
        return notes


def in_words(event: Mapping[str, Any]) -> str:
    """An event in one line for people."""
    said = ", ".join(f"{k} {_short(v)}" for k, v in event.items() if k not in ("time_ns", "date", "event"))
    return f"{event['event']}{': ' if said else ''}{said}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
