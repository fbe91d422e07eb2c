"""The one way from camera pixels to network input, used by training and by rollout alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.images import resize_area
from vla.spec import Spec, UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of RGB in 0..1."""


class Jitter(NamedTuple):
    """One random change per window: pixels shifted (B, 2) int64 (down, right), RGB in 0..1 times gain plus bias (B, 3)."""

    shift: Tensor
    gain: Tensor
    bias: Tensor


def draw_jitter(batch: int, pad: int, brightness: float, colour: float, device: torch.device) -> Jitter:
    """Random shift of up to `pad` pixels, brightness of up to +-`brightness`, gain per colour channel of up to +-`colour`."""
    shift = torch.randint(-pad, pad + 1, (batch, 2), device=device)
    gain = 1 + colour * (2 * torch.rand(batch, 3, device=device) - 1)
    bias = brightness * (2 * torch.rand(batch, 1, device=device) - 1)
    return Jitter(shift, gain, bias.expand(-1, 3))


class Swap(NamedTuple):
    """Where pictures of a batch show another's instead: mask (B, H, W) bool, donor (B,) int64."""

    mask: Tensor
    donor: Tensor

    def __call__(self, images: Tensor, donors: Tensor) -> Tensor:
        """(M, T, H, W, 3) of the batch's first M windows and the last pictures (B, H, W, 3) of all: the same shape."""
        mask, donor = self.mask[: len(images)], self.donor[: len(images)]
        return torch.where(mask[:, None, :, :, None], donors[donor][:, None], images)


SWAPS = 32
"""Rectangles that are tried per picture."""
SWAP_SIDES = (0.08, 0.5)
"""Least and largest side of a rectangle, in shares of the picture. Small ones get between the hand's path and the border."""
SWAP_OVER = 0.1
"""How far a rectangle's centre may lie beyond the border."""
SWAP_MARGIN = 0.08
"""How far it stays from the hand's path: room for a handle, a block or the button that the hand goes to, and for jitter."""
SWAP_MARGIN_NEAR = 0.12
"""The same in a picture from the hand, where things are larger."""


def donors(tasks: Sequence[str]) -> Tensor:
    """Another window with the same task for each of a batch, by B tasks -> int64 (B,), each once; itself if there is none."""
    groups: dict[str, list[int]] = {}
    order: list[int] = torch.randperm(len(tasks)).tolist()
    for i in order:
        groups.setdefault(tasks[i], []).append(i)
    donor = torch.empty(len(tasks), dtype=torch.int64)
    for group in groups.values():
        donor[group] = torch.tensor(group[1:] + group[:1])
    return donor


def draw_swap(path: Tensor, tasks: Sequence[str], chance: float, size: int, margin: float = SWAP_MARGIN) -> Swap:
    """For a share `chance` of a batch, rectangles away from the path (B, K, 2) that the hand takes through the picture.

    What the hand does not visit does not matter for the task: with parts of other scenes there, a policy learns to find
    what it is told to move by looking at it and not at the things that happen to be around. The other picture is one of the
    same of B `tasks`, and the rectangles keep off its path too: a second lever, or block of the same colour, would leave
    open which one is meant.
    """
    b, device, donor = len(path), path.device, donors(tasks).to(path.device)
    low, high = SWAP_SIDES
    half = (low + (high - low) * torch.rand(b, SWAPS, 2, device=device)) / 2
    centre = (1 + 2 * SWAP_OVER) * torch.rand(b, SWAPS, 2, device=device) - SWAP_OVER
    path = torch.cat([path, path[donor]], dim=1)
    touched = ((path[:, None] - centre[:, :, None]).abs() < half[:, :, None] + margin).all(-1).any(-1)
    drawn = ~touched & (torch.rand(b, 1, device=device) < chance)
    cells = (torch.arange(size, device=device) + 0.5) / size
    columns, rows = ((cells - centre[..., i, None]).abs() < half[..., i, None] for i in (0, 1))
    covered = (rows & drawn[..., None]).float().transpose(1, 2) @ columns.float()  # by how many rectangles
    return Swap(covered > 0, donor)


def swap_margin(spec: Spec, camera: str) -> float:
    """`draw_swap`'s margin for a camera."""
    return SWAP_MARGIN_NEAR if camera in spec.hand_projections else SWAP_MARGIN


def chosen_cameras(cameras: Mapping[str, Any], spec: Spec) -> list[str]:
    """Those of a policy's cameras that there are; UserError if there is none."""
    names = [camera for camera in cameras if camera in spec.cameras]
    if not names:
        raise UserError(
            f"the policy's cameras {sorted(cameras)} are not among {sorted(spec.cameras)}: rename one, or add it with "
            f"'+policy.cameras.{min(spec.cameras, default='name')}={{pad: 1}}'."
        )
    return names


def resize(images: Tensor, size: int, mode: str = "area") -> Tensor:
    """uint8 (M, H, W, 3) -> (M, size, size, 3): `area` averages, to uint8 (no aliasing when shrinking).

    As published, float32 in units of bytes, neither rounded nor cut at 0 and 255: `bicubic` by GR-1, `bicubic_antialias` by
    GR1-Training (torch's two kernels differ when they enlarge, too).
    """
    if mode == "area" or images.shape[1:3] == (size, size):
        return resize_area(images, size, size)
    smooth = mode == "bicubic_antialias"
    out = F.interpolate(images.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=smooth)
    return out.permute(0, 2, 3, 1)


def as_bytes(images: Tensor) -> Tensor:
    """Images in units of bytes -> uint8."""
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


def shift_pixels(images: Tensor, shift: Tensor) -> Tensor:
    """(B, T, H, W, 3) moved by `shift` (B, 2), the same for all frames of a window; the border pixel is repeated."""
    b, t, h, w, _ = images.shape
    device = images.device
    rows = (torch.arange(h, device=device) - shift[:, :1]).clamp(0, h - 1)
    columns = (torch.arange(w, device=device) - shift[:, 1:]).clamp(0, w - 1)
    frames = torch.arange(b * t, device=device).view(b, t, 1, 1) * (h * w)
    index = frames + (rows * w)[:, None, :, None] + columns[:, None, None, :]
    return images.reshape(-1, 3).index_select(0, index.flatten()).view(b, t, h, w, 3)


def normalise(images: Tensor, jitter: Jitter | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, ..., H, W, 3) in bytes -> the same shape with ImageNet's mean and std removed, after the jitter's gain and bias."""
    device, width, extra = images.device, images.shape[-2], images.ndim - 3
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    scale, offset = (1 / (255 * std))[None], (-mean / std)[None]
    if jitter is not None:
        scale, offset = scale * jitter.gain, offset + jitter.bias / std
    # One multiply-add over whole rows of pixels: broadcasting over an innermost axis of 3 is several times slower.
    scale, offset = (x.to(dtype).repeat(1, width).view(-1, *[1] * extra, 3 * width) for x in (scale, offset))
    return torch.addcmul(offset, images.flatten(-2).to(dtype), scale).view(images.shape)


def to_pixels(images: Tensor) -> Tensor:
    """The inverse of `normalise`: float (..., 3) -> uint8."""
    mean, std = torch.tensor(MEAN, device=images.device), torch.tensor(STD, device=images.device)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Transform:
    """Resize, then at training one random shift and colour change per window, then normalise.

    size: side of the network's input in pixels. pads: camera -> largest random shift in those pixels. mode: `resize`'s.
    """

    def __init__(self, size: int, pads: Mapping[str, int], brightness: float, colour: float, mode: str):
        if mode not in ("area", "bicubic", "bicubic_antialias"):
            raise UserError(f"resize {mode!r} is unknown: use area, bicubic or bicubic_antialias.")
        self.size, self.pads, self.brightness, self.colour, self.mode = size, pads, brightness, colour, mode

    def jitter(self, camera: str, batch: int, device: torch.device) -> Jitter:
        """A random change for each of `batch` windows."""
        return draw_jitter(batch, self.pads[camera], self.brightness, self.colour, device)

    def resize(self, images: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) -> (B, T, size, size, 3), see `resize`."""
        return resize(images.flatten(0, 1), self.size, self.mode).unflatten(0, images.shape[:2])

    def __call__(self, images: Tensor, jitter: Jitter | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 (B, T, H, W, 3) of any size -> normalised (B, T, size, size, 3)."""
        images = self.resize(images)
        if jitter is not None:
            images = shift_pixels(images, jitter.shift)
        return normalise(images, jitter, dtype)
