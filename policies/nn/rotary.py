"""Time as an angle (rotary positions, Su et al. 2021): what a query finds depends on how long ago a key was, not on when.

Here time is counted in whole frames, and every hand of the clock makes a whole number of rounds in CLOCK of them. So the keys
of old frames stay exactly valid however long a stream goes on: turns are looked up, and no error adds up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla.spec import UserError

CLOCK = 1024
"""Frames until all hands are back."""
FASTEST = 4
"""Frames in which the fastest hand goes round; the slowest needs CLOCK."""


def clock(width: int) -> Tensor:
    """Turns at every time: (CLOCK, width), cosines of width / 2 hands and then their sines."""
    if width % 2:
        raise UserError(f"heads are {width} channels wide but rotary time turns pairs of channels: change width or heads.")
    rounds = torch.logspace(0, 1, width // 2, CLOCK / FASTEST, dtype=torch.float64).round().long()
    steps = torch.arange(CLOCK)[:, None] * rounds % CLOCK
    angles = steps.double() * (2 * torch.pi / CLOCK)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of channels of x (B, heads, S, width) turned by `turns`, rows of `clock` broadcastable to its shape."""
    (a, b), (cos, sin) = x.chunk(2, dim=-1), turns.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
