"""A Spec's actions as networks read and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla.spec import ACTION, Entry


def is_command(entry: Entry) -> bool:
    """Whether an action entry is either -1 or +1 and nothing between, as CALVIN's `gripper` (closed, open)."""
    return entry == Entry("gripper", "1", -1.0, 1.0)


class Kinds:
    """Which of an action's A entries are `numbers`, and which `commands` that are -1 or +1; both are places in the action."""

    def __init__(self, entries: Sequence[Entry]):
        self.count = len(entries)
        self.commands = [i for i, entry in enumerate(entries) if is_command(entry)]
        self.numbers = [i for i in range(self.count) if i not in self.commands]

    def joined(self, numbers: Tensor, commands: Tensor) -> Tensor:
        """Numbers (..., n) and commands (..., c) as actions (..., A)."""
        order = [*self.numbers, *self.commands]
        together = torch.cat([numbers, commands], dim=-1)
        return together if order == sorted(order) else together[..., np.argsort(order).tolist()]

    def decided(self, actions: Tensor) -> Tensor:
        """Actions (..., A) whose commands are made -1 or +1."""
        return self.joined(actions[..., self.numbers], (actions[..., self.commands] > 0) * 2.0 - 1.0)


class Actions(nn.Module):
    """Between a Spec's actions (A entries, their `kinds`) and what networks see, which lies around -1..1.

    Entries that the Spec bounds by -1 and 1 stay as they are. Of the others the data's mean becomes 0 and its standard
    deviation 1, or, where no statistics are given, their range becomes -1..1; both are saved with the weights.
    """

    def __init__(self, entries: Sequence[Entry], statistics: Mapping[str, Mapping[str, Any]] | None):
        super().__init__()
        self.kinds, count = Kinds(entries), len(entries)
        self.low = np.array([-np.inf if e.low is None else e.low for e in entries], np.float32)
        self.high = np.array([np.inf if e.high is None else e.high for e in entries], np.float32)
        middle, scale = np.zeros(count, np.float32), np.ones(count, np.float32)
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        middle[bounded], scale[bounded] = ((self.high + self.low) / 2)[bounded], ((self.high - self.low) / 2)[bounded]
        asis = (self.low == -1) & (self.high == 1)
        if statistics is not None and not asis.all():
            mean, std = (np.asarray(statistics[ACTION][k], np.float32) for k in ("mean", "std"))
            least = 1e-3 * np.where(bounded, scale, 1)  # of an entry that hardly moves in the data
            middle, scale = np.where(asis, middle, mean), np.where(asis, scale, np.maximum(std, least))
        self.middle: Tensor
        self.scale: Tensor
        for name, values in (("middle", middle), ("scale", scale)):
            self.register_buffer(name, torch.from_numpy(values), persistent=not asis.all())

    def normal(self, actions: Tensor) -> Tensor:
        """Actions (..., A) in the Spec's units as networks see them."""
        return (actions - self.middle) / self.scale

    def real(self, normal: Tensor) -> np.ndarray:
        """What a network says (..., A) in the Spec's units and range, float32."""
        return np.clip((normal.float() * self.scale + self.middle).cpu().numpy(), self.low, self.high)
