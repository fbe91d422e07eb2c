"""A tiny real problem: find the bright square in a noisy picture and move towards it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from vla.spec import Entry, Spec
from vla.training.setup import make_accelerator
from vla.training.trainer import Settings, Trainer

CONF = Path(__file__).parents[2] / "conf"
SPEC = Spec(cameras={"static": (12, 12)}, action=(Entry("x", "1", -1, 1), Entry("y", "1", -1, 1)), action_kind="relative_pose")


class Squares:
    """Batch k holds 16 pictures (12, 12) with a square of 3 pixels; the action points from the middle to it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch(self, number: int) -> dict[str, Any]:
        random = torch.Generator().manual_seed(self.seed * 100_000 + number)
        corners = torch.randint(0, 10, (16, 2), generator=random)
        images = torch.randint(0, 60, (16, 1, 12, 12, 3), generator=random, dtype=torch.uint8)
        for i, (x, y) in enumerate(corners.tolist()):
            images[i, 0, y : y + 3, x : x + 3] = 250
        action = (corners / 4.5 - 1)[:, None, None]
        mask = torch.ones(16, 1, 1, dtype=torch.bool)
        return {
            "observation.images.static": images,
            "action": action,
            "action.mask": mask,
            "future.images.static": images,
            "task": ["go to the square"] * 16,
        }


class Finder(nn.Module):
    """A two-layer network with dropout, so that a step's random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(432, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(1))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training:
            self.seen += 1
        found = self.net(batch["observation.images.static"].float() / 255)
        loss = (found - batch["action"][:, 0, 0]).abs().mean()
        return loss, {"distance": loss.detach()}

    # What is needed of vla.policy.Imagining: it expects to see its memory, the last frame, darker.
    foresight_steps = 3

    def begin(self, seeds: Sequence[int]) -> Any:
        return None

    def remember(self, observation: Mapping[str, Any], memory: Any) -> Any:
        return observation["observation.images.static"]

    def foresee(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        return {"static": memory // 2}


def settings(**changes: Any) -> Settings:
    """conf/trainer/default.yaml with changes, small and quick."""
    quick = {
        "batch_size": 16,
        "log_every": 10,
        "save_every": 20,
        "validate_every": 50,
        "warmup": 10,
        "precision": "fp32",
        "picture_every": None,
    }
    merged = OmegaConf.merge(OmegaConf.load(CONF / "trainer/default.yaml"), quick, changes)
    return Settings(**OmegaConf.to_container(merged))  # pyright: ignore


def make_trainer(out: Path, seed: int = 0, **changes: Any) -> Trainer:
    """A Trainer of a Finder whose weights come from `seed`."""
    torch.manual_seed(seed)
    chosen = settings(device="cpu", **changes)
    config = {"policy": {"_target_": "policies.toy.Finder"}}
    accelerator = make_accelerator(chosen)
    return Trainer(Finder(), Squares(1), chosen, out, accelerator, config, {"data": "none"}, seed, validation=Squares(2))
