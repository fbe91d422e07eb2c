"""How long a training run lasts, and the learning rate on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla.spec import UserError


@dataclass(frozen=True)
class Budget:
    """The length of a run: a number of steps, or CPU-seconds of this process, or minutes on the wall (all work included).

    A time given replaces the steps. Only a budget in steps gives the same weights twice: how far a time reaches depends on
    the machine's mood.
    """

    steps: int | None = None
    cpu_seconds: float | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.cpu_seconds is not None and self.minutes is not None:
            raise UserError(
                f"trainer.cpu_seconds={self.cpu_seconds} and trainer.minutes={self.minutes} are both given: give one of them."
            )
        if self._limit is None or not self._limit > 0:
            raise UserError(f"trainer.{self.unit} is {self._limit}: give a positive number.")

    @property
    def unit(self) -> str:
        """Which of the three counts."""
        return "cpu_seconds" if self.cpu_seconds is not None else "minutes" if self.minutes is not None else "steps"

    @property
    def _limit(self) -> float | None:
        return getattr(self, self.unit)

    @property
    def reproducible(self) -> bool:
        """Whether the same run gives the same weights again."""
        return self.unit == "steps"

    def fraction(self, step: int, cpu_seconds: float, seconds: float) -> float:
        """The share of the budget that is consumed, from 0 to 1."""
        spent = {"steps": step, "cpu_seconds": cpu_seconds, "minutes": seconds / 60}[self.unit]
        return min(1.0, spent / float(self._limit or 1))

    def __str__(self) -> str:
        if self.reproducible:
            return f"{self.steps} steps"
        return f"{self._limit:g} {self.unit.replace('_', '-')} (a time budget: another run will not give the same bits)"


def learning_rate(step: int, fraction: float, peak: float, warmup: int, floor: float) -> float:
    """Linear warm-up over `warmup` steps, times a cosine from 1 at `fraction` 0 to `floor` (a share of `peak`) at 1."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return peak * rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction)))
