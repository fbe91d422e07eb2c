"""The network: tokens of each frame, the trunk over a window of frames, the two readouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.gr1.attention import attention_mask, token_steps
from policies.gr1.foresight import Decoder
from policies.nn.rotary import CLOCK, clock
from policies.nn.state import StateToken
from policies.nn.text import Text
from policies.nn.transformer import Resampler, Trunk
from policies.nn.vision import build_vision
from vla.spec import Entry, UserError


class GR1(nn.Module):
    """Language, state and images of `window` frames in; [ACT] and [OBS] outputs and predicted patches out.

    state: how it is encoded, and its entries (policies/nn/state.py); None for none.

    A frame's input tokens are, in order: language 1, state 1 (if `state`), and for each camera its resampler latents and its
    cls. They depend on that frame alone, so that a rollout keeps them. The time embedding is that of the place in the window
    and is added to input tokens only; queries know time only through what they may look at.

    places: the last place is `now`, or (published) the window's `first` frame that exists has the first place, so that now
    moves on until the window is full. token_positions: rows of a learned table of token positions, added after the first
    norm (GR1-Training); the published model has none (0). time: `index`, as described, or `rotary`: no time embedding, tokens
    know how long ago others were, and look back at `window` steps in sequences of any length (see policies/gr1/stream.py).
    """

    def __init__(
        self,
        cameras: Sequence[str],
        size: int,
        state: tuple[str, Sequence[Entry]] | None,
        action_queries: int,
        *,
        width: int,
        layers: int,
        heads: int,
        expansion: float,
        activation: str,
        dropout: float,
        window: int,
        act_sees_foresight: bool,
        vision: Mapping[str, Any],
        shared_vision: bool,
        language: int,
        text: Mapping[str, Any],
        resampler: Mapping[str, Any],
        queries: int,
        decoder: Mapping[str, Any],
        places: str = "now",
        token_positions: int = 0,
        time: str = "index",
    ):
        super().__init__()
        if places not in ("now", "first"):
            raise UserError(f"places {places!r} is unknown: use now or first.")
        if time not in ("index", "rotary"):
            raise UserError(f"time {time!r} is unknown: use index or rotary.")
        if time == "rotary" and (token_positions or window > CLOCK // 2):
            raise UserError(
                f"rotary time needs token_positions 0 and a history of at most {CLOCK // 2}, but they are {token_positions} "
                f"and {window}: change them or use time=index."
            )
        self.cameras, self.window, self.queries, self.action_queries = tuple(cameras), window, queries, action_queries
        self.act_sees_foresight, self.places = act_sees_foresight, places
        self.text = Text(text, language)
        self.language_token = nn.Linear(language, width) if language != width else nn.Identity()
        self.state_token = StateToken(state[0], width, state[1]) if state else None
        self.vision_of = {c: "all" if shared_vision else c for c in cameras}
        self.vision = nn.ModuleDict({v: build_vision(vision, size, language) for v in dict.fromkeys(self.vision_of.values())})
        first: Any = self.vision[self.vision_of[cameras[0]]]
        channels = first.patch_width
        self.resampler = Resampler(channels, **resampler)
        self.latent_token = nn.ModuleDict({c: nn.Linear(channels, width) for c in cameras})
        self.cls_token = nn.ModuleDict({c: nn.Linear(first.cls_width, width) for c in cameras})
        self.inputs = 1 + (state is not None) + len(cameras) * (resampler["latents"] + 1)
        self.time = nn.Parameter(torch.randn(window, width) * 0.02) if time == "index" else None
        self.turns: Tensor | None
        self.register_buffer("turns", clock(width // heads) if time == "rotary" else None, persistent=False)
        self.per_step = self.inputs + action_queries + len(cameras) * queries
        if 0 < token_positions < window * self.per_step:
            raise UserError(
                f"token_positions is {token_positions} but a window has {window} times {self.per_step} tokens: raise it, "
                "or set 0 for none."
            )
        self.position = nn.Parameter(torch.randn(token_positions, width) * 0.02) if token_positions else None
        self.act_query = nn.Parameter(torch.randn(action_queries, width) * 0.02) if action_queries else None
        self.obs_query = nn.ParameterDict({c: nn.Parameter(torch.randn(queries, width) * 0.02) for c in cameras})
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.trunk = Trunk(width, layers, heads, dropout, activation, expansion)
        numbers = dict(decoder)
        skip = numbers.pop("skip")
        if skip and size // numbers["patch"] != first.grid:
            raise UserError(
                f"decoder.skip needs one patch per cell of the vision map ({first.grid} on a side) but decoder.patch "
                f"{numbers['patch']} gives {size // numbers['patch']}: change decoder.patch or switch skip off."
            )
        self.decoder = Decoder(width, size=size, skip=channels if skip else None, **numbers)
        self.skip = bool(skip)

    def frame(self, images: Mapping[str, Tensor], state: Tensor | None, language: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One frame of M situations: images camera -> (M, size, size, 3) normalised, state (M, S), language (M, D).

        Returns its input tokens (M, inputs, width) and the vision patches by camera (M, P, C)."""
        token = self.state_token(state) if self.state_token is not None and state is not None else None
        features = self.see(images, language)
        return self.tokens(language, token, features), {c: patches for c, (_, patches) in features.items()}

    def see(self, images: Mapping[str, Tensor], language: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Vision features camera -> (cls, patches) of images and language as `frame` takes them.

        Cameras that share an encoder go through it together: products with more rows are faster."""
        features: dict[str, tuple[Tensor, Tensor]] = {}
        for name, encoder in self.vision.items():
            mine = [c for c in self.cameras if self.vision_of[c] == name]
            cls, patches = encoder(torch.cat([images[c] for c in mine]), language.repeat(len(mine), 1))
            features |= zip(mine, zip(cls.chunk(len(mine)), patches.chunk(len(mine)), strict=True), strict=True)
        return features

    def tokens(self, language: Tensor, state: Tensor | None, features: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Language (M, D), state token (M, width) and vision features camera -> (cls, patches) as tokens (M, inputs, width)."""
        tokens = [self.language_token(language)[:, None]]
        if state is not None:
            tokens.append(state[:, None])
        for camera in self.cameras:
            cls, patches = features[camera]
            tokens.append(self.latent_token[camera](self.resampler(patches)))
            tokens.append(self.cls_token[camera](cls)[:, None])
        return torch.cat([t.to(tokens[0].dtype) for t in tokens], dim=1)

    def think(
        self,
        frames: Tensor,
        valid: Tensor,
        query_steps: list[int],
        act: bool,
        foresee: bool,
        places: Tensor | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Window of frame tokens (B, T, inputs, width) and which of them exist (B, T) -> outputs at `query_steps`.

        [ACT] outputs (B, steps, action queries, width) if `act`, [OBS] outputs camera -> (B, steps, queries, width) if
        `foresee`. Queries that nobody looks at are left out, which changes nothing for the rest. places: int64 (B, T), the
        frames' places in the window, instead of those that the config says.
        """
        b, t, inputs, _ = frames.shape
        count = len(query_steps)
        foresee_tokens = foresee or (act and self.act_sees_foresight)
        actions = self.action_queries if act else 0
        obs = len(self.cameras) * self.queries if foresee_tokens else 0
        if places is None and self.places == "first":
            places = (torch.arange(t, device=valid.device) - valid.int().argmax(1, keepdim=True)).clamp(min=0)
        if self.time is not None:
            time = self.time[self.window - t :] if places is None else self.time[places]
            frames = frames + time[..., None, :].to(frames.dtype)
        queries = self.questions(act, foresee_tokens, count).expand(b, -1, -1).to(frames.dtype)
        x = self.norm(torch.cat([frames.flatten(1, 2), queries], dim=1))
        if self.position is not None:
            if places is None:
                places = torch.arange(self.window - t, self.window, device=valid.device).expand(b, t)
            x = x + self.position[self._token_places(places, query_steps, actions, obs)].to(x.dtype)
        x = self.drop(x)
        band = turns = None
        if self.turns is not None:
            band, steps = self.window, token_steps(t, inputs, actions, obs, query_steps, valid.device)
            turns = self.turns[steps % CLOCK][None, None]
        mask = attention_mask(valid, inputs, actions, obs, query_steps, self.act_sees_foresight, band)
        x = self.trunk(x, mask[:, None], x.shape[1] - t * inputs, turns)
        acts = x[:, : count * actions].unflatten(1, (count, actions)) if act else None
        if not foresee:
            return acts, {}
        seen = x[:, count * actions :].unflatten(1, (count, len(self.cameras), self.queries)).unbind(2)
        return acts, dict(zip(self.cameras, seen, strict=True))

    def questions(self, act: bool, foresee: bool, steps: int = 1) -> Tensor:
        """The [ACT] queries of all steps, then their [OBS] queries, those that are wanted: (S, width)."""
        acts = [self.act_query.repeat(steps, 1)] if act and self.act_query is not None else []
        obs = [torch.cat([self.obs_query[c] for c in self.cameras]).repeat(steps, 1)] if foresee else []
        return torch.cat(acts + obs)

    def _token_places(self, places: Tensor, query_steps: list[int], actions: int, obs: int) -> Tensor:
        """Places of frames (B, T) -> those of the sequence's tokens (B, S) if steps were end to end, all queries in them."""
        first, asked = places * self.per_step, places[:, query_steps] * self.per_step
        starts = (first, asked + self.inputs, asked + self.inputs + self.action_queries)
        kinds = zip(starts, (self.inputs, actions, obs), strict=True)
        return torch.cat([(s[..., None] + torch.arange(n, device=s.device)).flatten(1) for s, n in kinds], dim=1)

    def imagine(self, obs: Tensor, patches: Tensor | None) -> Tensor:
        """[OBS] outputs of one camera (M, queries, width), its vision patches (M, P, C) -> predicted patches (M, P, pixels)."""
        return self.decoder(obs, patches if self.skip else None)
