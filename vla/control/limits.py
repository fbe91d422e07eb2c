"""The limits of an arm: what an action may ask for, and what a reading may show. All are in the Spec's units.

    state:   {joint_1: [-2.8, 2.8], ...}       a reading outside is a fault
    speed:   {joint_1: 2.5, tcp_x: 1.0, ...}   units a second; a faster reading is a fault
    action:
      delta_x: {state: tcp_x, scale: 0.02, low: -0.5, high: 0.5, lead: 0.06, step: 1.0}
      joint_1: {state: joint_1, low: -2.8, high: 2.8, step: 0.05}

An action entry with a `scale` is a step of that much of its state entry per unit: the target that it moves, which leads the
measured value by at most `lead`, stays between low and high, and `step` bounds the entry itself. Without a scale the entry
is the target: it stays between low and high and within `step` of the measured value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.spec import Spec, UserError

NEVER = float("inf")


@dataclass(frozen=True)
class Rule:
    """The limits of one action entry: see the module."""

    state: str
    scale: float | None = None
    low: float = -NEVER
    high: float = NEVER
    lead: float = NEVER
    step: float = NEVER


@dataclass(frozen=True)
class Clamp:
    """What was asked of an entry and what is sent instead."""

    entry: str
    asked: float
    sent: float


class Limits:
    """Limits for a Spec; UserError for a name that it does not have."""

    def __init__(
        self,
        spec: Spec,
        state: Mapping[str, Sequence[float]] | None = None,
        speed: Mapping[str, float] | None = None,
        action: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        places = {
            "state": {e.name: k for k, e in enumerate(spec.state)},
            "action": {e.name: k for k, e in enumerate(spec.action)},
        }

        def place(kind: str, name: str) -> int:
            if name not in places[kind]:
                raise UserError(
                    f"a limit names the {kind} {name!r}, which the robot has not: use one of {sorted(places[kind])}."
                )
            return places[kind][name]

        self.names = [e.name for e in spec.action]
        self.range = np.array([[e.low for e in spec.action], [e.high for e in spec.action]], np.float64)
        self.state = {name: (place("state", name), float(low), float(high)) for name, (low, high) in (state or {}).items()}
        self.speed = {name: (place("state", name), float(most)) for name, most in (speed or {}).items()}
        rules = {name: Rule(**rule) for name, rule in (action or {}).items()}
        self.rules = [(place("action", name), place("state", rule.state), rule) for name, rule in rules.items()]
        self._target: dict[int, float] = {}
        self._last: tuple[int, np.ndarray] | None = None

    def still(self) -> None:
        """The arm holds: targets begin again at what is measured."""
        self._target.clear()

    def refuse(self, asked: np.ndarray) -> dict[str, dict[str, Any]]:
        """Faults of an action (A,): not finite, or outside the Spec's range."""
        if (bad := np.flatnonzero(~np.isfinite(asked))).size:
            return {"action_not_finite": {self.names[k]: float(asked[k]) for k in bad}}
        outside = np.flatnonzero((asked < self.range[0] - 1e-6) | (asked > self.range[1] + 1e-6))
        return {"action_out_of_range": {self.names[k]: float(asked[k]) for k in outside}} if outside.size else {}

    def clamp(self, asked: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, list[Clamp]]:
        """The action (A,) within the limits, given the state (S,), and what was changed."""
        sent = asked.astype(np.float64)
        for k, s, rule in self.rules:
            here = float(measured[s])
            if rule.scale is None:
                bounded = float(np.clip(asked[k], here - rule.step, here + rule.step))
                sent[k] = np.clip(bounded, rule.low, rule.high)
                continue
            target = float(np.clip(self._target.get(k, here), here - rule.lead, here + rule.lead))
            moved = target + float(np.clip(asked[k], -rule.step, rule.step)) * rule.scale
            moved = float(np.clip(moved, min(rule.low, target), max(rule.high, target)))  # from outside only inwards
            sent[k] = (moved - target) / rule.scale
            self._target[k] = moved
        changed = np.flatnonzero(np.abs(sent - asked) > 1e-6)
        return sent, [Clamp(self.names[k], float(asked[k]), float(sent[k])) for k in changed]

    def watch(self, measured: np.ndarray, time_ns: int) -> dict[str, dict[str, Any]]:
        """Faults of a reading (S,) taken at `time_ns`."""
        if not np.isfinite(measured).all():
            return {"state_not_finite": {"entries": np.flatnonzero(~np.isfinite(measured)).tolist()}}
        found: dict[str, dict[str, Any]] = {}
        outside = {n: float(measured[k]) for n, (k, low, high) in self.state.items() if not low <= measured[k] <= high}
        if outside:
            found["state_out_of_limits"] = outside
        if self._last is not None and time_ns > self._last[0]:
            rate = np.abs(measured - self._last[1]) / ((time_ns - self._last[0]) / 1e9)
            fast = {name: float(rate[k]) for name, (k, most) in self.speed.items() if rate[k] > most}
            if fast:
                found["too_fast"] = fast
        if self._last is None or time_ns > self._last[0]:
            self._last = (time_ns, measured.copy())
        return found
