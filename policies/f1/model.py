"""The network: understanding now, foreseeing in tokens of rising scales, and acting towards what is foreseen."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.f1.mask import attention_mask
from policies.f1.mixture import Cache, Heads, layers, mix, norm
from policies.f1.tokenizer import Tokenizer
from policies.f1.understanding import build_understanding
from policies.nn.inpainting import guided
from policies.nn.state import StateToken
from policies.nn.transformer import sincos
from vla.spec import Entry


class Generation(nn.Module):
    """The expert that foresees: tokens for the frames seen, merged over time, and for what each scale is predicted from.

    history tokens: what is known before scales 2..`history_scales` of each of `window` frames, the frames mixed place by
    place. foresight tokens: at scale 1 a learned one, then what is known before each scale, at the places where its tokens
    are predicted. All scales of the tokenizer have their positions, so that a policy trained on all can go on with fewer.
    """

    def __init__(
        self, tokenizer: Tokenizer, window: int, history_scales: int, depth: int, heads: Heads, width: int, hidden: int
    ):
        super().__init__()
        self.kind, self.history = heads.norm, tokenizer.length(history_scales) - 1
        self.merge = nn.Linear(window * tokenizer.latent, tokenizer.latent)
        self.enter = nn.Linear(tokenizer.latent, width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.history_position = nn.Parameter(torch.randn(self.history, width) * 0.02)
        self.position = nn.Parameter(torch.randn(sum(tokenizer.counts), width) * 0.02)
        self.scale = nn.Parameter(torch.randn(len(tokenizer.counts), width) * 0.02)
        self.layers = layers(depth, width, hidden, heads)
        self.norm = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, tokenizer.outputs)
        self.scale_of: Tensor
        scale_of = [scale for scale, count in enumerate(tokenizer.counts) for _ in range(count)]
        self.register_buffer("scale_of", torch.tensor(scale_of), persistent=False)

    def seen(self, known: Tensor) -> Tensor:
        """What is known of each frame before its scales (B, window, P, latent) -> history tokens (B, P, width)."""
        merged = self.merge(known.transpose(1, 2).flatten(2))
        return self.enter(merged) + self.history_position

    def asked(self, known: Tensor, first: int) -> Tensor:
        """What is known before tokens first, first + 1, ... (B, n, latent) -> foresight tokens (B, n, width).

        From token 0 on there is one more than in `known`: of it nothing is known."""
        tokens = self.enter(known)
        if first == 0:
            tokens = torch.cat([self.start.expand(len(tokens), 1, -1).to(tokens.dtype), tokens], dim=1)
        at = slice(first, first + tokens.shape[1])
        return tokens + self.position[at] + self.scale[self.scale_of[at]]

    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs (B, n, width) of foresight tokens -> predictions of the tokens themselves (B, n, outputs)."""
        return self.head(norm(outputs, self.norm, self.kind))


class Action(nn.Module):
    """The expert that acts: a token of the robot's state and one of each noisy action of a chunk -> velocities.

    state: how it is encoded, and its entries (policies/nn/state.py). actions: how many entries one has.
    """

    def __init__(
        self,
        state: tuple[str, Sequence[Entry]],
        actions: int,
        chunk: int,
        depth: int,
        heads: Heads,
        width: int,
        hidden: int,
    ):
        super().__init__()
        self.kind, self.chunk, self.width = heads.norm, chunk, width
        self.state_token = StateToken(state[0], width, state[1])
        self.enter = nn.Linear(actions, width)
        self.with_level, self.after = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.position = nn.Parameter(torch.randn(chunk, width) * 0.02)
        self.layers = layers(depth, width, hidden, heads)
        self.norm = nn.Parameter(torch.zeros(width))
        self.leave = nn.Linear(width, actions)

    def tokens(self, state: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """state (B, S), noisy chunks (B, D, chunk, A), their noise levels (B, D) -> (B, 1 + D * chunk, width)."""
        time = sincos(1000 * level, self.width)[:, :, None].expand(-1, -1, self.chunk, -1)
        entered = self.enter(noisy)
        actions = self.after(F.silu(self.with_level(torch.cat([entered, time.to(entered.dtype)], dim=-1)))) + self.position
        return torch.cat([self.state_token(state)[:, None].to(actions.dtype), actions.flatten(1, 2)], dim=1)

    def velocity(self, outputs: Tensor) -> Tensor:
        """Outputs (B, 1 + D * chunk, width) -> noise minus actions, (B, D, chunk, A)."""
        return self.leave(norm(outputs[:, 1:], self.norm, self.kind)).unflatten(1, (-1, self.chunk)).float()


class F1(nn.Module):
    """Three experts and one attention from understanding to generation to action (see policies.f1.mask).

    scales: foreseen, the first so many of the tokenizer's; 0 leaves the generation expert out. chunk: actions, None for a
    policy of video alone. `think` computes everything at once, as training does; `imagine` and `act` compute the same bit
    by bit, each with the keys and values of what came before.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        size: int,
        tokenizer: Tokenizer,
        *,
        window: int,
        scales: int,
        history_scales: int,
        chunk: int | None,
        state: tuple[str, Sequence[Entry]],
        actions: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        norm: str,
        understanding: Mapping[str, Any],
        generation: Mapping[str, int],
        action: Mapping[str, int],
    ):
        super().__init__()
        self.heads = Heads(heads, kv_heads, head_width, norm)
        self.scales, self.counts, self.chunk = scales, tokenizer.counts[:scales], chunk
        self.understanding = build_understanding(understanding, cameras, size, layers, self.heads)
        self.generation = Generation(tokenizer, window, history_scales, layers, self.heads, **generation) if scales else None
        self.action = Action(state, actions, chunk, layers, self.heads, **action) if chunk else None

    def think(
        self,
        seen: Tensor,
        valid: Tensor,
        known: Tensor | None,
        before: Tensor | None,
        acting: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """All tokens at once -> predicted foresight tokens (B, n, outputs), velocities (B, D, chunk, A).

        seen, valid: tokens of understanding. known: of the frames seen, before: of the future, what the tokenizer says is
        known before each scale, (B, window, P, latent) and (B, n - 1, latent). acting: state, noisy chunks and their levels.
        """
        experts, foresight, draws = [(self.understanding.layers, seen)], 0, 0
        if self.generation is not None and known is not None and before is not None:
            tokens = torch.cat([self.generation.seen(known), self.generation.asked(before, 0)], dim=1)
            experts.append((self.generation.layers, tokens))
            foresight = before.shape[1] + 1
        if self.action is not None and acting is not None:
            experts.append((self.action.layers, self.action.tokens(*acting)))
            draws = acting[1].shape[1]
        positions, mask = self._order(valid, draws)
        outputs, _ = mix(experts, self.heads, positions, mask)
        prediction = velocity = None
        if self.generation is not None and foresight:
            prediction = self.generation.predict(outputs[1][:, -foresight:])
        if self.action is not None and draws:
            velocity = self.action.velocity(outputs[-1])
        return prediction, velocity

    def imagine(
        self, tokenizer: Tokenizer, seen: Tensor, valid: Tensor, known: Tensor, uniform: Tensor, top_k: int, top_p: float
    ) -> tuple[Tensor, Cache]:
        """Foresight tokens (B, n), scale by scale, chosen with uniform numbers (B, n); and the cache for `act`."""
        positions, mask = self._order(valid, 1 if self.action is not None else 0)
        experts, start = [(self.understanding.layers, seen)], seen.shape[1]
        if self.generation is None:
            _, cache = mix(experts, self.heads, positions[:, :start], mask[:, :start, :start])
            return known.new_zeros(len(seen), 0), cache
        end = start + self.generation.history + 1
        first = torch.cat([self.generation.seen(known), self.generation.asked(known[:, 0, :0], 0)], dim=1)
        outputs, cache = mix([*experts, (self.generation.layers, first)], self.heads, positions[:, :end], mask[:, :end, :end])
        found: list[Tensor] = []
        for scale, count in enumerate(self.counts):
            place = sum(self.counts[:scale])
            if scale:
                before = tokenizer.next_inputs(torch.cat(found, dim=1))
                start, end = end, end + count
                asked = self.generation.asked(before, place)
                outputs, cache = mix(
                    [(self.generation.layers, asked)], self.heads, positions[:, start:end], mask[:, start:end, :end], cache
                )
            prediction = self.generation.predict(outputs[-1][:, -count:])
            found.append(tokenizer.choose(prediction, uniform[:, place : place + count], top_k, top_p))
        return torch.cat(found, dim=1), cache

    def act(self, valid: Tensor, cache: Cache, state: Tensor, noise: Tensor, steps: int, *plan: Tensor) -> Tensor:
        """Noise (B, chunk, A) carried to actions in `steps` Euler steps, beside what `imagine` has cached.

        plan: actions (B, chunk, A) and weights (B, chunk) to go on from (policies.nn.inpainting), or nothing.
        """
        assert self.action is not None
        action, x = self.action, noise
        positions, mask = self._order(valid, 1)
        start = cache[0][0].shape[2]

        def velocity(x: Tensor, level: float) -> Tensor:
            tokens = action.tokens(state, x[:, None], x.new_full((len(x), 1), level))
            outputs, _ = mix([(action.layers, tokens)], self.heads, positions[:, start:], mask[:, start:], cache)
            return action.velocity(outputs[0])[:, 0]

        for i in range(steps):
            at = functools.partial(velocity, level=1 - i / steps)
            x = x - (guided(at, x, 1 - i / steps, *plan) if plan else at(x)) / steps
        return x

    def _order(self, valid: Tensor, draws: int) -> tuple[Tensor, Tensor]:
        """Positions (B, S) and the mask (B, S, S) of understanding, history, foresight, state and `draws` chunks."""
        history = self.generation.history if self.generation is not None else 0
        chunk, state = (self.chunk or 0, 1) if draws else (0, 0)
        mask = attention_mask(valid, history, self.counts, state, chunk, draws)
        rest = history + sum(self.counts) + state
        behind = torch.cat([torch.arange(rest), rest + torch.arange(chunk).repeat(draws)]).to(valid.device)
        return torch.cat([(valid.cumsum(1) - 1).clamp(min=0), valid.sum(1, keepdim=True) + behind], dim=1), mask
