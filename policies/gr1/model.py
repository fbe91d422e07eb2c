"""The network: tokens of each frame, the trunk over a window of frames, the two readouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from policies.gr1.attention import attention_mask
from policies.gr1.foresight import Decoder
from policies.gr1.state import StateToken
from policies.nn.text import Text
from policies.nn.transformer import Resampler, Trunk
from policies.nn.vision import build_vision
from vla.spec import UserError


class GR1(nn.Module):
    """Language, state and images of `window` frames in; [ACT] and [OBS] outputs and predicted patches out.

    A frame's input tokens are, in order: language 1, state 1 (if `state`), and for each camera its resampler latents and its
    cls. They depend on that frame alone, so that a rollout keeps them. The time embedding is that of the place in the window
    (the last is now) and is added to input tokens only; queries know time only through what they may look at.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        size: int,
        state: str | None,
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
    ):
        super().__init__()
        self.cameras, self.window, self.queries, self.action_queries = tuple(cameras), window, queries, action_queries
        self.act_sees_foresight = act_sees_foresight
        self.text = Text(text, language)
        self.language_token = nn.Linear(language, width) if language != width else nn.Identity()
        self.state_token = StateToken(state, width) if state else None
        self.vision_of = {c: "all" if shared_vision else c for c in cameras}
        self.vision = nn.ModuleDict({v: build_vision(vision, size, language) for v in dict.fromkeys(self.vision_of.values())})
        first: Any = self.vision[self.vision_of[cameras[0]]]
        channels = first.patch_width
        self.resampler = Resampler(channels, **resampler)
        self.latent_token = nn.ModuleDict({c: nn.Linear(channels, width) for c in cameras})
        self.cls_token = nn.ModuleDict({c: nn.Linear(first.cls_width, width) for c in cameras})
        self.inputs = 1 + (state is not None) + len(cameras) * (resampler["latents"] + 1)
        self.time = nn.Parameter(torch.randn(window, width) * 0.02)
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
        """One frame of M situations: images camera -> (M, size, size, 3) normalised, state (M, 15), language (M, D).

        Returns its input tokens (M, inputs, width) and the vision patches by camera (M, P, C)."""
        tokens = [self.language_token(language)[:, None]]
        if self.state_token is not None and state is not None:
            tokens.append(self.state_token(state)[:, None])
        patches = {}
        for camera in self.cameras:
            cls, patches[camera] = self.vision[self.vision_of[camera]](images[camera], language)
            tokens.append(self.latent_token[camera](self.resampler(patches[camera])))
            tokens.append(self.cls_token[camera](cls)[:, None])
        return torch.cat([t.to(tokens[0].dtype) for t in tokens], dim=1), patches

    def think(
        self, frames: Tensor, valid: Tensor, query_steps: list[int], act: bool, foresee: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Window of frame tokens (B, T, inputs, width) and which of them exist (B, T) -> outputs at `query_steps`.

        [ACT] outputs (B, steps, action queries, width) if `act`, [OBS] outputs camera -> (B, steps, queries, width) if
        `foresee`. Queries that nobody looks at are left out, which changes nothing for the rest.
        """
        b, t, inputs, _ = frames.shape
        count = len(query_steps)
        foresee_tokens = foresee or (act and self.act_sees_foresight)
        actions = self.action_queries if act else 0
        obs = len(self.cameras) * self.queries if foresee_tokens else 0
        parts = [(frames + self.time[self.window - t :, None].to(frames.dtype)).flatten(1, 2)]
        if act and self.act_query is not None:
            parts.append(self.act_query.repeat(count, 1).expand(b, -1, -1).to(frames.dtype))
        if foresee_tokens:
            queries = torch.cat([self.obs_query[c] for c in self.cameras])
            parts.append(queries.repeat(count, 1).expand(b, -1, -1).to(frames.dtype))
        x = self.drop(self.norm(torch.cat(parts, dim=1)))
        mask = attention_mask(valid, inputs, actions, obs, query_steps, self.act_sees_foresight)
        x = self.trunk(x, mask[:, None], x.shape[1] - t * inputs)
        acts = x[:, : count * actions].unflatten(1, (count, actions)) if act else None
        if not foresee:
            return acts, {}
        seen = x[:, count * actions :].unflatten(1, (count, len(self.cameras), self.queries)).unbind(2)
        return acts, dict(zip(self.cameras, seen, strict=True))

    def imagine(self, obs: Tensor, patches: Tensor | None) -> Tensor:
        """[OBS] outputs of one camera (M, queries, width), its vision patches (M, P, C) -> predicted patches (M, P, pixels)."""
        return self.decoder(obs, patches if self.skip else None)
