"""Acting on a window: the tokens of the last frames are kept, and the trunk computes all of them at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.gr1.model import GR1


@dataclass(frozen=True)
class Window:
    """`history` frames, `stride` control steps apart, the last one now.

    In memory: "frames" (N, length, inputs, width) and which of them exist, "valid" (N, length).
    """

    history: int
    stride: int

    def begin(self, model: GR1, n: int) -> dict[str, Tensor]:
        """Nothing seen yet, in n worlds."""
        weight, length = model.norm.weight, (self.history - 1) * self.stride + 1
        return {
            "frames": torch.zeros(n, length, model.inputs, len(weight), device=weight.device),
            "valid": torch.zeros(n, length, dtype=torch.bool, device=weight.device),
        }

    def take(self, model: GR1, memory: Mapping[str, Tensor], same: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What memory has after a new frame: its tokens by name, (N, inputs, width); where not `same` (N,) it is the first."""
        known = memory["valid"][:, 1:] & same[:, None]
        frames = {name: torch.cat([memory[name][:, 1:], new[:, None]], dim=1) for name, new in tokens.items()}
        return {**frames, "valid": torch.cat([known, torch.ones_like(same)[:, None]], dim=1)}

    def view(self, memory: Mapping[str, Tensor], name: str = "frames") -> tuple[Tensor, Tensor]:
        """What `think` needs, world by world."""
        return memory[name][:, :: self.stride], memory["valid"][:, :: self.stride]

    def think(
        self, model: GR1, frames: Tensor, valid: Tensor, act: bool, foresee: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """[ACT] (M, action queries, width) and [OBS] outputs camera -> (M, queries, width) now, those that are asked for."""
        acts, obs = model.think(frames, valid, [self.history - 1], act, foresee)
        return None if acts is None else acts[:, 0], {c: x[:, 0] for c, x in obs.items()}
