"""The frames to come: patches, their normalisation, and the decoder from [OBS] outputs to patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.nn.transformer import Block, sincos_grid
from vla.spec import UserError

EPSILON = 1e-6
LEAST = 0.02
"""Deviations below this, in units of the normalised image, count as flat: their ratios would be noise."""


def patchify(images: Tensor, patch: int) -> Tensor:
    """(M, H, W, 3) -> (M, H/patch * W/patch, patch * patch * 3), row by row."""
    m, h, w, c = images.shape
    cut = images.reshape(m, h // patch, patch, w // patch, patch, c)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(m, -1, patch * patch * c)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    m, count, _ = patches.shape
    side = int(count**0.5)
    cut = patches.reshape(m, side, side, patch, patch, 3)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(m, side * patch, side * patch, 3)


def statistics(patches: Tensor, epsilon: str = "inside") -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation of each patch, (M, P, 1) each.

    So that nothing is divided by zero, 1e-6 is added `inside` the root, to the variance, or `outside` (published).
    """
    variance = patches.var(-1, keepdim=True)
    deviation = (variance + EPSILON).sqrt() if epsilon == "inside" else variance.sqrt() + EPSILON
    return patches.mean(-1, keepdim=True), deviation


def targets(images: Tensor, patch: int, epsilon: str = "inside") -> Tensor:
    """Normalised images (M, H, W, 3) -> patches, each with its own mean removed and divided by its own deviation."""
    patches = patchify(images.float(), patch)
    mean, deviation = statistics(patches, epsilon)
    return (patches - mean) / deviation


def level_changes(images: Tensor, current: Tensor, patch: int) -> Tensor:
    """How each patch's mean and log deviation change from the current images to these, (M, H, W, 3) both: (M, P, 2)."""
    (mean, deviation), (now, spread) = (statistics(patchify(x.float(), patch)) for x in (images, current))
    return torch.cat([mean - now, (deviation.clamp(min=LEAST) / spread.clamp(min=LEAST)).log()], dim=-1)


def imagine(prediction: Tensor, current: Tensor, patch: int, epsilon: str = "inside") -> Tensor:
    """Predicted patches (M, P, patch * patch * 3), or with 2 level changes behind each -> images (M, H, W, 3).

    The pixels say how a patch looks, not how bright it is. Mean and deviation are those of the same patch in the `current`
    frame (M, H, W, 3), right only where nothing moves, unless the decoder predicts how they change.
    """
    mean, deviation = statistics(patchify(current.float(), patch), epsilon)
    pixels, levels = prediction.float().split([patch * patch * 3, prediction.shape[-1] - patch * patch * 3], dim=-1)
    if levels.shape[-1]:
        mean, deviation = mean + levels[..., :1], deviation.clamp(min=LEAST) * levels[..., 1:].clamp(-4, 4).exp()
    return unpatchify(pixels * deviation + mean, patch)


class Decoder(nn.Module):
    """[OBS] outputs (M, Q, width) -> patches (M, P, patch * patch * 3).

    One mask token per patch with its fixed position looks, through ViT blocks, at the projected [OBS] tokens. With `skip`
    a patch's mask token also carries a linear view of the current frame's vision features (M, P, skip) at that place. With
    `levels` two more numbers are predicted for each patch: how its mean and log deviation change (see `level_changes`).
    positions: half of each describes the row and half the column, in this order (`rows`); `published` has them the other way
    round, and among the weights.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int,
        heads: int,
        size: int,
        patch: int,
        skip: int | None,
        levels: bool = False,
        positions: str = "rows",
    ):
        super().__init__()
        if positions not in ("rows", "published"):
            raise UserError(f"decoder.positions {positions!r} is unknown: use rows or published.")
        self.project = nn.Linear(inputs, width)
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        self.skip = nn.Linear(skip, width) if skip else None
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, patch * patch * 3)
        self.levels = nn.Linear(width, 2) if levels else None
        if self.levels is not None:
            nn.init.zeros_(self.levels.weight)
            nn.init.zeros_(self.levels.bias)
        self.position: Tensor
        grid, published = sincos_grid(size // patch, width), positions == "published"
        self.register_buffer("position", grid.roll(width // 2, -1) if published else grid, persistent=published)

    def forward(self, obs: Tensor, features: Tensor | None) -> Tensor:
        masks = (self.mask + self.position).expand(len(obs), -1, -1)
        if self.skip is not None and features is not None:
            masks = masks + self.skip(features)
        x = torch.cat([self.project(obs), masks], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, obs.shape[1] :])
        return self.pixels(x) if self.levels is None else torch.cat([self.pixels(x), self.levels(x)], dim=-1)
