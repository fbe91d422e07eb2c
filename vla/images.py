"""Resizing pictures: the one implementation for datasets, training and rollout, so that all see the same pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _shares(size: int, wanted: int) -> Tensor:
    """(wanted, size) matrix: the share of each input pixel in each output pixel; rows sum to 1."""
    edges = torch.arange(wanted + 1, dtype=torch.float64) * size / wanted
    pixel = torch.arange(size, dtype=torch.float64)
    overlap = (torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)).clamp(min=0)
    return (overlap / overlap.sum(1, keepdim=True)).float()


@lru_cache(maxsize=64)
def _rows_of_pixels(size: int, wanted: int) -> Tensor:
    """The same for a row of interleaved RGB: (3 size, 3 wanted). One dense product beats a batch of thin ones."""
    return torch.kron(_shares(size, wanted), torch.eye(3)).T.contiguous()


def resize_area(images: Tensor, height: int, width: int) -> Tensor:
    """Average over each output pixel's exact area: uint8 (..., H, W, 3) -> uint8 (..., height, width, 3)."""
    *lead, old_height, old_width, channels = images.shape
    if (old_height, old_width) == (height, width):
        return images
    flat = images.reshape(-1, old_height, old_width * channels)
    with torch.autocast(images.device.type, enabled=False):
        out = flat.float()
        if old_height != height:
            out = _shares(old_height, height).to(images.device) @ out
        out = out.reshape(-1, old_width * channels)
        if old_width != width:
            out = out @ _rows_of_pixels(old_width, width).to(images.device)
    return out.round_().to(torch.uint8).view(*lead, height, width, channels)
