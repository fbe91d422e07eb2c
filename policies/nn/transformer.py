"""Pre-norm transformer blocks, the perceiver resampler and fixed position tables."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.nn.rotary import turn


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "quick_gelu": quick_gelu}


SMALL = 128
"""Sequences up to this many tokens are attended by plain matrix products on a CPU, where torch's fused kernel is several
times slower for them (its backward most of all)."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention. q (B, heads, S, d), k and v (B, heads, K, d), mask bool, True = may look."""
    if q.device.type != "cpu" or k.shape[2] > SMALL or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, mask, dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention: x (B, S, width) -> (B, rows, width), for the last `rows` tokens (None: all).

    mask: bool broadcastable to (B, heads, S, S), True = may look. turns: the tokens' times (policies.nn.rotary), if they count.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, rows: int | None = None, turns: Tensor | None = None) -> Tensor:
        start = 0 if rows is None else x.shape[1] - rows
        q, k, v = self.project(x, turns)
        return self.mix(q[:, :, start:], k, v, None if mask is None else mask[:, :, start:])

    def project(self, x: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, width) -> queries, keys and values (B, heads, S, width / heads), the first two turned to their times."""
        b, s, width = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return (q, k, v) if turns is None else (turn(q, turns), turn(k, turns), v)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What queries (B, heads, S, d) gather from keys and values (B, heads, K, d): (B, S, width)."""
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        activation: str = "gelu",
        expansion: float = 4,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        hidden = int(expansion * width)
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attention = Attention(width, heads, dropout)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: int | None = None, turns: Tensor | None = None) -> Tensor:
        seen = self.attention(self.norm1(x), mask, rows, turns)
        return self.digest(x if rows is None else x[:, x.shape[1] - rows :], seen)

    def digest(self, x: Tensor, seen: Tensor) -> Tensor:
        """Tokens and what their attention gathered, (B, S, width) both -> the block's output."""
        x = x + self.drop(seen)
        return x + self.drop(self.down(self.activation(self.up(self.norm2(x)))))


class Trunk(nn.Module):
    """GPT-style stack of blocks with a final norm; residual outputs start small (GPT-2's 1/sqrt(2 layers)).

    x (B, S, width) -> (B, rows, width): the last `rows` tokens, the only ones that the last block computes.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float, activation: str, expansion: float = 4):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout, activation, expansion) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, mask: Tensor, rows: int, turns: Tensor | None = None) -> Tensor:
        *first, last = self.blocks
        for block in first:
            x = block(x, mask, None, turns)
        return self.norm(last(x, mask, rows, turns))


class ResamplerLayer(nn.Module):
    """Latents look at the patches and at themselves, then a feed-forward; no biases (Flamingo's layer)."""

    def __init__(self, width: int, heads: int, head_width: int, expansion: float):
        super().__init__()
        inner, hidden = heads * head_width, int(expansion * width)
        self.heads = heads
        self.norm_patches, self.norm_latents, self.norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.kv = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        normed = self.norm_latents(latents)
        keys = torch.cat([self.norm_patches(patches), normed], dim=1)
        q = self.q(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(keys).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        latents = latents + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return latents + self.down(F.gelu(self.up(self.norm(latents))))


class Resampler(nn.Module):
    """Perceiver resampler: patches (B, P, width) -> latents (B, latents, width). One frame at a time, no mixing over time."""

    def __init__(self, width: int, latents: int, layers: int, heads: int, head_width: int, expansion: float = 4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.media = nn.Parameter(torch.randn(1, width) * 0.02)
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, head_width, expansion) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        patches = patches + self.media
        latents = self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.norm(latents)


def sincos(positions: Tensor, width: int) -> Tensor:
    """Sine and cosine features of positions (...,) -> (..., width), wavelengths 2 pi to 10000 * 2 pi."""
    rates = 10000.0 ** -(torch.arange(width // 2) / (width / 2)).to(positions.device)
    angles = positions[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_grid(side: int, width: int) -> Tensor:
    """Fixed 2-D positions of a side x side map, row by row: (side * side, width), half for the row, half for the column."""
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    return torch.cat([sincos(rows.flatten(), width // 2), sincos(columns.flatten(), width // 2)], dim=-1)
