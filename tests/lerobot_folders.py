"""A tiny LeRobotDataset that our converter wrote, and tiny policies that LeRobot's own classes trained on it and saved."""

import json
from pathlib import Path

import numpy as np
import torch

from envs.playtable.world import ACTION_ENTRIES, FRAME, STATE_ENTRIES
from vla.data.convert import to_lerobot  # first: it tells huggingface_hub to stay offline
from vla.data.writer import DatasetWriter, Segment
from vla.spec import ACTION, STATE, Spec

from lerobot.configs.types import FeatureType  # isort: skip
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # isort: skip
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors  # isort: skip
from lerobot.utils.feature_utils import dataset_to_policy_features  # isort: skip

SIZE = 32
SPEC = Spec(
    cameras={"static": (SIZE, SIZE), "wrist": (SIZE, SIZE)},
    state=STATE_ENTRIES,
    action=ACTION_ENTRIES,
    action_kind="relative_pose",
    control_hz=30.0,
    frame=FRAME,
)
SENTENCES = ("open the drawer", "push the red block to the left")
TINY = {
    "act": {
        "chunk_size": 8, "n_action_steps": 8, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1, "pretrained_backbone_weights": None,
    },
    "diffusion": {
        "n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "n_groups": 4,
        "diffusion_step_embed_dim": 16, "num_train_timesteps": 4, "pretrained_backbone_weights": None, "use_group_norm": True,
    },
}  # fmt: skip


def seen(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures and states of `count` frames."""
    rng = np.random.default_rng(seed)
    images = {f"observation.images.{c}": rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8) for c in SPEC.cameras}
    return images | {STATE: rng.normal(size=(count, len(STATE_ENTRIES))).astype(np.float32)}


def dataset(folder: Path, lengths: tuple[int, ...] = (14, 10)) -> Path:
    """The LeRobotDataset (pictures as PNG) in `folder`, and ours, which it is of, beside it in `<folder>.zarr`."""
    ours = folder.with_suffix(".zarr")
    with DatasetWriter(ours, SPEC, {"made": "up"}) as writer:
        for i, length in enumerate(lengths):
            action = np.random.default_rng((9, i)).uniform(-1, 1, (length, len(ACTION_ENTRIES))).astype(np.float32)
            labels = [Segment(0, length, SENTENCES[i % 2].replace(" ", "_"), SENTENCES[i % 2])]
            writer.append_episode(seen(length, i) | {ACTION: action}, labels, scene="D", seed=i)
    to_lerobot.convert(ours, folder, form="image")
    return folder


def train(kind: str, data: Path, out: Path, steps: int = 3) -> Path:
    """A policy of LeRobot's registry after a few steps, saved as lerobot-train does; gives `out`."""
    torch.manual_seed(0)
    meta = LeRobotDataset("local/tiny", root=data).meta
    features = dataset_to_policy_features(meta.features)
    outputs = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    inputs = {k: f for k, f in features.items() if k not in outputs}
    config = make_policy_config(
        kind, input_features=inputs, output_features=outputs, device="cpu", push_to_hub=False, **TINY[kind]
    )
    past = {k: [i / 30 for i in config.observation_delta_indices] for k in inputs} if config.observation_delta_indices else {}
    frames = LeRobotDataset(
        "local/tiny", root=data, delta_timestamps={ACTION: [i / 30 for i in config.action_delta_indices], **past}
    )
    policy = get_policy_class(kind)(config)
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(steps):
        items = [frames[i] for i in (step, step + 5)]
        loss, _ = policy.forward(before(torch.utils.data.default_collate(items)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.save_pretrained(out)
    before.save_pretrained(out)
    after.save_pretrained(out)
    saved = json.loads((out / "config.json").read_text())
    # As it is by default, where training started from ImageNet's weights.
    (out / "config.json").write_text(json.dumps(saved | {"pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1"}))
    return out
