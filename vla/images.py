"""Resizing pictures, the one implementation for datasets, training and rollout, so that all see the same pixels; and how alike
two are."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
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


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures (M, 3, H, W) in -1..1, Gaussian window of 11 px: (M,)."""
    x, y = (images.float() + 1) / 2, (others.float() + 1) / 2
    at = torch.arange(11, device=x.device) - 5.0
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window = (window / window.sum()).repeat(3, 1, 1, 1)

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, window, groups=3), window.transpose(2, 3), groups=3)

    mx, my = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    a, b = 0.01**2, 0.03**2
    found = (2 * mx * my + a) * (2 * xy + b) / ((mx * mx + my * my + a) * (xx + yy + b))
    return found.mean((1, 2, 3))
