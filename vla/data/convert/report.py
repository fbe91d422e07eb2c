"""What a conversion tells when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SHOWN = 10  # names per fault


@dataclass(frozen=True)
class Summary:
    """What is in the output now, and what is not.

    made: what there is of each kind, like {"clips": 12, "frames": 340}. skipped: what was left out (a file, or a place in
    one) -> its fault. notes: what was found strange although it was converted, in sentences.
    """

    made: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """For people to read; faults together, the most frequent first."""
        for note in self.notes:
            yield f"note: {note}"
        for fault, count in Counter(self.skipped.values()).most_common():
            names = [name for name, f in self.skipped.items() if f == fault]
            more = f" and {count - SHOWN} more" if count > SHOWN else ""
            yield f"skipped {count}: {fault}: {', '.join(names[:SHOWN])}{more}"
        yield ", ".join([*(f"{count} {kind}" for kind, count in self.made.items()), f"{len(self.skipped)} skipped"])
