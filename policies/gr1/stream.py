"""Acting on a stream (`policy.time=rotary`): a control step computes the tokens of the new frame alone.

In every layer a token looks at the tokens of the last `history` steps, its own among them, and knows how long ago each was
(policies.nn.rotary). So the keys and values of a frame are the same for all that will ever look at it, and are kept. They were
made when the frame was new, from what it saw then: from the second layer on they carry frames that have left the band since,
and an output depends on the last layers * (history - 1) + 1 frames. That is *not* what the last `history` frames alone would
give. It is what `GR1.think` computes for a whole sequence of any length at once, banded in every layer; and so it is trained,
on windows of `sequence` frames, longer than the band, with all of their places supervised. Places near a window's beginning
have a short past, as a rollout has that has just begun.

    layer 2   x . . x x x        history 3: the output at the right looks at three steps in the last layer, and through
    layer 1   x x x x x .        them at five steps
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.gr1.model import GR1
from policies.nn.acting import in_groups
from policies.nn.rotary import CLOCK

NEVER = -1


@dataclass(frozen=True)
class Stream:
    """`history` frames in the band, `stride` control steps apart; worlds are computed in groups of `group`.

    In memory: "frames" (N, layers, 2, heads, slots, inputs, head width), a ring of the keys and values of as many control steps
    as the band spans, and "written" int64 (N, slots), the step at which each slot was, or NEVER.
    """

    history: int
    stride: int
    group: int

    def begin(self, model: GR1, n: int) -> dict[str, Tensor]:
        """Nothing seen yet, in n worlds."""
        weight, heads, slots = model.norm.weight, _blocks(model)[0].attention.heads, self.history * self.stride
        shape = (n, len(model.trunk.blocks), 2, heads, slots, model.inputs, len(weight) // heads)
        return {
            "frames": torch.zeros(shape, device=weight.device),
            "written": torch.full((n, slots), NEVER, dtype=torch.int64, device=weight.device),
        }

    def take(self, model: GR1, memory: Mapping[str, Tensor], same: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What memory has after a new frame: its tokens by name, (N, inputs, width); where not `same` (N,) it is the first."""
        old = memory["written"]
        step = old.amax(1, keepdim=True) + 1
        written = torch.where(same[:, None], old, NEVER).scatter(1, step % old.shape[1], step)
        write, frames = functools.partial(self._write, model), {}
        for name, new in tokens.items():
            if len(new) == self.group:  # the rings are large: one copy is enough
                frames[name] = write(memory[name].clone(), written, new)[0]
            else:
                frames[name] = in_groups(self.group, write, memory[name], written, new)[0]
        return {**frames, "written": written}

    def view(self, memory: Mapping[str, Tensor], name: str = "frames") -> tuple[Tensor, Tensor]:
        """What `think` needs, world by world."""
        return memory[name], memory["written"]

    def think(
        self, model: GR1, frames: Tensor, written: Tensor, act: bool, foresee: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """[ACT] (M, action queries, width) and [OBS] outputs camera -> (M, queries, width) now, those that are asked for."""
        m, actions, seeing = len(frames), model.action_queries if act else 0, act and model.act_sees_foresight
        x = model.norm(model.questions(act, foresee or seeing)).expand(m, -1, -1)
        turns, look = self._turns(model, written), self._known(written).repeat_interleave(model.inputs, dim=1)
        look = look[:, None].expand(-1, x.shape[1], -1)
        if seeing:
            order = torch.arange(x.shape[1], device=x.device)
            own = (order[:, None] < actions) & (order[None, actions:] >= actions)
            look = torch.cat([look, own.expand(m, -1, -1)], dim=2)
        for i, block in enumerate(_blocks(model)):
            q, k, v = block.attention.project(block.norm1(x), turns)
            keys, values = (frames[:, i, kind].flatten(2, 3).to(q.dtype) for kind in (0, 1))
            if seeing:
                keys, values = torch.cat([keys, k[:, :, actions:]], dim=2), torch.cat([values, v[:, :, actions:]], dim=2)
            x = block.digest(x, block.attention.mix(q, keys, values, look[:, None]))
        x = model.trunk.norm(x)
        seen = x[:, actions:].unflatten(1, (len(model.cameras), model.queries)).unbind(1) if foresee else ()
        return x[:, :actions] if act else None, dict(zip(model.cameras, seen, strict=False))

    def _write(self, model: GR1, frames: Tensor, written: Tensor, tokens: Tensor) -> tuple[Tensor]:
        """Put keys and values of the newest frame's tokens (M, inputs, width) into `frames`, which is changed."""
        (m, inputs, _), slot = tokens.shape, written.argmax(1)
        rows, causal = torch.arange(m, device=tokens.device), torch.ones(inputs, inputs, device=tokens.device).tril().bool()
        look = self._known(written)[:, None, :, None].repeat(1, inputs, 1, inputs)
        look[rows, :, slot] = causal  # within the frame, each token at those before it
        turns, look, x = self._turns(model, written), look.flatten(2)[:, None], model.norm(tokens)
        blocks = _blocks(model)
        for i, block in enumerate(blocks):
            q, *made = block.attention.project(block.norm1(x), turns)
            for kind, new in enumerate(made):
                frames[rows, i, kind, :, slot] = new.to(frames.dtype)
            if i + 1 < len(blocks):  # nobody looks at what the last layer makes of a frame
                keys, values = (frames[:, i, kind].flatten(2, 3).to(q.dtype) for kind in (0, 1))
                x = block.digest(x, block.attention.mix(q, keys, values, look))
        return (frames,)

    def _known(self, written: Tensor) -> Tensor:
        """The slots (M, slots) whose frames are of this rollout and a multiple of `stride` steps ago."""
        ago = written.amax(1, keepdim=True) - written
        return (written != NEVER) & (ago % self.stride == 0)

    def _turns(self, model: GR1, written: Tensor) -> Tensor:
        """The turn of the newest frame's tokens, (M, 1, 1, head width)."""
        assert model.turns is not None
        return model.turns[written.amax(1) // self.stride % CLOCK][:, None, None]


def _blocks(model: GR1) -> list[Any]:
    return list(model.trunk.blocks)
