"""Parts of one optimisation step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vla.training.loader import Batch


class LossOf(nn.Module):
    """Makes a policy's loss its forward, which is what DDP, autocast and compile wrap."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.policy.loss(batch)  # pyright: ignore[reportCallIssue]


def adamw(policy: nn.Module, lr: float, decay: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the trained parameters, fused where torch has it; matrices and filters decay, biases and gains do not."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=device.type in ("cuda", "cpu"))


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random in one step of one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
