"""The contract of a policy. Networks, scripted experts and remote servers all meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla.spec import Spec

Observation = Mapping[str, Any]
Memory = Any


@runtime_checkable
class Policy(Protocol):
    """Turns observations and an instruction into chunks of actions.

    `spec` names what the policy reads and writes. `history` says whether every control step's observation must be shown
    (`remember`), or only those at which a chunk is asked for.

    Memory is a value: a dict of arrays or tensors whose first axis is the world (None where nothing is remembered), so
    that worlds can be reset one by one and batches regrouped with `vla.rollout.select` and `vla.rollout.merge`.
    """

    spec: Spec
    history: bool

    def begin(self, seeds: Sequence[int]) -> Memory:
        """Memory for `len(seeds)` fresh worlds. Whatever is random in world i is drawn from seeds[i] alone."""
        ...

    def act(self, observation: Observation, memory: Memory) -> tuple[np.ndarray, Memory]:
        """Actions from now on: float32 (N, horizon, A) in the spec's range, the first due at once; and the new memory."""
        ...

    def remember(self, observation: Observation, memory: Memory) -> Memory:
        """Take in an observation at which no chunk is asked for. Only called if `history`."""
        ...


@runtime_checkable
class Imagining(Protocol):
    """A policy that can show what it expects to see."""

    foresight_steps: int
    """How many control steps ahead the imagined frames lie."""

    def foresee(self, memory: Memory) -> dict[str, np.ndarray]:
        """Imagined frames after the last `act`: camera -> uint8 (N, H, W, 3)."""
        ...


@runtime_checkable
class Discerning(Protocol):
    """A policy that can tell which instructions it has learnt nothing about."""

    def discerns(self) -> bool:
        """Whether it really can: this one may have come without the sentences that it was trained on."""
        ...

    def refusal(self, sentence: str) -> str | None:
        """Why not to act on an instruction, in one sentence that names the nearest known ones; None if it may be acted on."""
        ...


@runtime_checkable
class Continuing(Protocol):
    """A policy whose `act` may be shown the rest of the plan (PLAN and PLAN_WEIGHT in the observation) and goes on from it."""

    continues: bool
    """Whether it can; actions of weight 1 then begin its chunk exactly as they were shown."""


def ready_to_refuse(policy: Any) -> str:
    """Let the policy make what its refusals need (some seconds), and say in words what it refuses."""
    if not isinstance(policy, Discerning):
        return "refuses no instruction: this kind of policy cannot tell which it knows"
    if not policy.discerns():
        return (
            "refuses no instruction: its checkpoint does not say which it was trained on, or its text encoder is not calibrated"
        )
    policy.refusal("warm up")
    return "refuses instructions that are like nothing it was trained on (refuse=false: none)"
