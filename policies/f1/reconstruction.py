"""Training an image tokenizer: rebuild pictures from all scales of tokens, and from the first few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.f1.tokenizer import build_tokenizer, to_signed
from policies.nn.images import Transform, chosen_cameras, shift_pixels
from vla.images import ssim
from vla.spec import Spec, image_key


class TokenizerPolicy(nn.Module):
    """What `vla-pretrain` trains when it trains a tokenizer. It looks at single pictures and does not act.

    Its weights are named as F1Policy names those of its tokenizer, so that `init_from` hands them on.

    spec: of the data. cameras: name -> {"pad": largest random shift in pixels}; those that the data has are rebuilt.
    tokenizer: see `build_tokenizer`. truncate: chance that a batch is rebuilt from its first scales alone, as many as drawn,
    so that a plan of a few scales can be shown. loss: weights of `pixels` (mean absolute error), `ssim` (1 - SSIM), `codes`
    (VQ) and `kl` (VAE). Reported beside the losses: `psnr` in dB, `ssim`, and `use`, the share of the codebook in use.
    """

    def __init__(
        self,
        spec: Spec,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        cameras: Mapping[str, Mapping[str, int]],
        tokenizer: Mapping[str, Any],
        truncate: float,
        loss: Mapping[str, float],
        resize: str,
    ):
        super().__init__()
        names = chosen_cameras(cameras, spec)
        self.spec = replace(
            spec, cameras={c: spec.cameras[c] for c in names}, state=(), action=(), environment_state=(), action_kind="none"
        )
        self.history, self.window, self.stride, self.horizon, self.foresight_steps, self.hand_path = False, 1, 1, 1, 0, 0
        self.tokenizer = build_tokenizer(tokenizer)
        self.size, self.truncate, self.weights = self.tokenizer.size, truncate, dict(loss)
        self.transform = Transform(self.size, {c: cameras[c]["pad"] for c in names}, 0.0, 0.0, resize)

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of a batch of windows, of which the last frames are taken, and its parts and measures, detached."""
        pictures = []
        for camera in self.spec.cameras:
            frames = self.transform.resize(batch[image_key(camera)][:, -1:])
            if self.training:
                frames = shift_pixels(frames, self.transform.jitter(camera, len(frames), frames.device).shift)
            pictures.append(to_signed(frames[:, 0]))
        images, scales = torch.cat(pictures), len(self.tokenizer.scales)
        if self.training:
            self.tokenizer.steps.add_(1)
            if torch.rand(()) < self.truncate:
                scales = int(torch.randint(1, scales + 1, ()))
        rebuilt, parts, measures = self.tokenizer.loss(images, scales)
        alike = ssim(rebuilt, images)
        losses = {"pixels": F.l1_loss(rebuilt.float(), images), "ssim": 1 - alike.mean(), **parts}
        total = torch.stack([self.weights[name] * part for name, part in losses.items()]).sum()
        told = losses | {"ssim": alike.mean(), "psnr": psnr(rebuilt, images).mean(), **measures}
        return total, {name: value.detach() for name, value in told.items()}


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures (M, 3, H, W) in -1..1, in dB: (M,); at most 100."""
    error = (images.float() - others.float()).square().mean((1, 2, 3)) / 4
    return -10 * error.clamp(min=1e-10).log10()
