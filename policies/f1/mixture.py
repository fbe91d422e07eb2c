"""A mixture of transformers: experts with weights and a width of their own, and one attention over the tokens of all.

Their layers are transformers' Gemma layers at any size, so that PaliGemma can be one of them. Only projections and
feed-forwards of a layer are used; the attention between is here, because it mixes experts and keeps keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from policies.nn.transformer import attend

ROTARY_BASE = 10000.0
Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of all tokens so far, layer by layer: (B, kv heads, S, head width) each."""


class Heads(NamedTuple):
    """What experts must share to look at each other. norm: `rms` (Gemma's), or `layer`, which also removes the mean and is
    several times quicker on a CPU."""

    count: int
    kv: int
    width: int
    norm: str


def layers(depth: int, width: int, hidden: int, heads: Heads, keys_at_the_end: bool = False) -> nn.ModuleList:
    """An expert's layers. keys_at_the_end: nobody reads the expert's outputs, so its last layer has keys and values only."""
    shape = GemmaConfig(
        hidden_size=width, intermediate_size=hidden, num_attention_heads=heads.count, num_key_value_heads=heads.kv,
        head_dim=heads.width, num_hidden_layers=depth,
    )  # fmt: skip
    made: list[Any] = [GemmaDecoderLayer(shape, i) for i in range(depth)]
    for layer in made:
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 2:  # outputs start small, as GPT-2's do
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if last else 0.02)
    if keys_at_the_end:
        keep_keys(made[-1])
    return nn.ModuleList(made)


def keep_keys(layer: Any) -> None:
    """Take away from a last layer what nobody reads: all but keys and values."""
    del layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp, layer.post_attention_layernorm


def norm(x: Tensor, weight: Tensor, kind: str) -> Tensor:
    """Gemma's normalisation (or a layer norm) with gain 1 + weight."""
    gain = (1 + weight).to(x.dtype)
    return F.rms_norm(x, x.shape[-1:], gain, 1e-6) if kind == "rms" else F.layer_norm(x, x.shape[-1:], gain, None, 1e-6)


def mix(
    experts: Sequence[tuple[nn.ModuleList, Tensor]], heads: Heads, positions: Tensor, mask: Tensor, cache: Cache | None = None
) -> tuple[list[Tensor], Cache]:
    """Tokens through all layers, each by its expert, looking at each other and at what is cached.

    experts: (layers, tokens (B, S_i, width_i)) in the order of the sequence; an expert whose last layer has only keys comes
    first. positions: of all new tokens, (B or 1, S). mask: bool (B or 1, S, cached + S).
    Returns each expert's outputs (without a final norm; of an expert that ends in keys, those before) and the longer cache.
    """
    tokens = [x for _, x in experts]
    cos, sin = _rotary(positions, heads.width)
    longer: Cache = []
    for i in range(len(experts[0][0])):
        queries, keys, values, asking = [], [], [], []
        for e, (stack, _) in enumerate(experts):
            layer: Any = stack[i]
            x = norm(tokens[e], layer.input_layernorm.weight, heads.norm)
            if hasattr(layer, "mlp"):
                queries.append(_split(layer.self_attn.q_proj(x), heads.count))
                asking.append(e)
            keys.append(_split(layer.self_attn.k_proj(x), heads.kv))
            values.append(_split(layer.self_attn.v_proj(x), heads.kv))
        k, v = _rotate(torch.cat(keys, dim=2), cos, sin), torch.cat(values, dim=2)
        if cache is not None:
            k, v = torch.cat([cache[i][0], k], dim=2), torch.cat([cache[i][1], v], dim=2)
        longer.append((k, v))
        if not asking:
            continue
        q = torch.cat(queries, dim=2)
        rows = q.shape[2]
        q = _rotate(q, cos[:, :, -rows:], sin[:, :, -rows:])
        each = heads.count // heads.kv
        y = attend(q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1), mask[:, None, -rows:])
        parts = y.transpose(1, 2).flatten(2).split([tokens[e].shape[1] for e in asking], dim=1)
        for e, part in zip(asking, parts, strict=True):
            layer = experts[e][0][i]
            x = tokens[e] + layer.self_attn.o_proj(part)
            tokens[e] = x + layer.mlp(norm(x, layer.post_attention_layernorm.weight, heads.norm))
    return tokens, longer


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rates = ROTARY_BASE ** -(torch.arange(0, width, 2, device=positions.device) / width)
    angles = (positions[..., None] * rates).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-right, left], dim=-1) * sin.to(x.dtype)
