"""Tiny policies of the plug-in, and LeRobot's commands as processes."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy

from lerobot_policy_vla import F1Config, Gr1Config

EPISODES = ["--env.type=playtable", "--env.episode_length=4", "--env.sizes={static: [32, 32], wrist: [32, 32]}"]
VISION = {"name": "conv", "channels": [8, 8, 8, 8], "reduced": 4, "cls_width": 16, "film": True}
TINY = {
    "gr1": {
        "size": 16, "width": 16, "layers": 1, "heads": 2, "language": 8, "vision": VISION,
        "resampler": {"latents": 2, "layers": 1, "heads": 2, "head_width": 8, "expansion": 2},
        "foresight": {"queries": 2, "decoder": {"width": 16, "heads": 2}},
    },
    "f1": {
        "size": 16, "layers": 2, "heads": 2, "head_width": 8,
        "understanding": {
            "width": 16, "hidden": 16, "language": 8, "vision": VISION,
            "resampler": {"latents": 2, "layers": 1, "heads": 2, "head_width": 8, "expansion": 2},
        },
        "generation": {"width": 16, "hidden": 16},
        "action": {"width": 16, "hidden": 16},
    },
}  # fmt: skip


def made(data, kind=Gr1Config, changes=(), **options):
    """A new policy for a LeRobotDataset, as lerobot-train makes it, and the dataset's meta."""
    torch.manual_seed(0)
    meta = LeRobotDataset("local/tiny", root=data).meta
    tiny = TINY["f1" if kind is F1Config else "gr1"]
    config = kind(changes={**tiny, **dict(changes)}, device="cpu", push_to_hub=False, **options)
    return make_policy(config, ds_meta=meta), meta


def run(command, *arguments):
    """A console script in an environment of one thread; gives all that it printed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    script = Path(sys.executable).parent / command
    ended = subprocess.run([str(script), *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr
