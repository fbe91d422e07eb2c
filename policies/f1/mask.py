"""Who may look at whom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_mask(valid: Tensor, history: int, scales: Sequence[int], state: int, chunk: int, draws: int) -> Tensor:
    """The attention rules of F1 as bool (B, S, S); [b, i, j] True: token i may look at token j.

    valid: bool (B, U), False for padding among the U tokens of understanding (the rest has none). The sequence is

        U U U | H H | 1 | 2 2 | S | a a | b b

    understanding, `history` tokens of the frames seen, then foresight by scale (`scales` tokens each), the robot's `state`
    tokens, and `chunk` action tokens for each of `draws` noises, which are strangers to each other. x = may look:

                   U U U  H H  1  2 2  S  a a  b b
               U   x x x
               U   x x x                                understanding sees itself alone;
               U   x x x
               H   x x x  x x                           generation sees understanding, and of its own tokens
               H   x x x  x x                           the coarser and equally coarse ones;
               1   x x x  x x  x
               2   x x x  x x  x  x x
               2   x x x  x x  x  x x
               S   x x x  x x  x  x x  x                action sees all that,
               a   x x x  x x  x  x x  x  x x           and the actions of its own draw
               a   x x x  x x  x  x x  x  x x
               b   x x x  x x  x  x x  x       x x
               b   x x x  x x  x  x x  x       x x

    So nothing ever looks to the right of its own block: what stands there can be computed later, or left out.
    """
    sizes = [valid.shape[1], history, *scales, state, *[chunk] * draws]
    first_draw = len(sizes) - draws
    block = torch.tensor([place for place, size in enumerate(sizes) for _ in range(size)], device=valid.device)
    action = block >= first_draw
    allowed = (block[None] <= block[:, None]) & ~(action[None] & (block[None] != block[:, None]))
    seen = torch.cat([valid, valid.new_ones(len(valid), len(block) - valid.shape[1])], dim=1)
    return allowed[None] & seen[:, None]
