"""A tiny GR-1 with every part, and batches and observations for it."""

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from policies.gr1.policy import GR1Policy
from vla.checkpoint import build_policy
from vla.spec import Entry, Spec

CAMERAS = ("static", "wrist")
SENTENCES = ("open the drawer", "push the red block to the left", "turn on the light bulb")
SPEC = Spec(
    cameras={"static": (20, 20), "wrist": (12, 12)},
    state=tuple(Entry(f"s{i}", "1") for i in range(15)),
    action=(*(Entry(f"a{i}", "1", -1.0, 1.0) for i in range(6)), Entry("gripper", "1", -1.0, 1.0)),
    action_kind="relative_pose",
    control_hz=30.0,
)
VIDEO = Spec(cameras={"static": (16, 16)})
FLOW = {"name": "flow", "hidden": 32, "blocks": 1, "draws": 4, "steps": 4}


def config(name: str = "gr1_small", **changes):
    tiny = {
        "size": 16,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "language": 8,
        "chunk": 4,
        "vision": {"name": "conv", "channels": [8, 8, 8, 8], "reduced": 4, "cls_width": 16, "film": True},
        "foresight": {"steps": 3, "fraction": 1.0, "queries": 2, "decoder": {"patch": 8, "width": 16, "layers": 1, "heads": 2}},
        "cameras": {"static": {"pad": 1}, "wrist": {"pad": 1}},
    }
    base = composed(name)
    base.vision = {}
    base.state = "rotation6d" if base.state == "auto" else base.state
    base.head = {} if "head" in changes else base.head
    return OmegaConf.merge(base, tiny, changes)


def composed(name: str, *overrides: str):
    """The config of policy `name` as the commands read it."""
    with initialize_config_module("conf", version_base="1.3"):
        return OmegaConf.create(OmegaConf.to_container(compose("train", overrides=[f"policy={name}", *overrides]).policy))


def policy(spec: Spec = SPEC, seed: int = 0, **changes) -> GR1Policy:
    torch.manual_seed(seed)
    return build_policy(config(**changes), spec)


def batch(b: int, t: int = 1, chunk: int = 4, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    out = {
        "observation.state": torch.randn(b, t, 15, generator=g),
        "action": torch.rand(b, t, chunk, 7, generator=g) * 2 - 1,
        "action.mask": torch.ones(b, t, chunk, dtype=torch.bool),
        "frame.mask": torch.ones(b, t, dtype=torch.bool),
        "future.mask": torch.ones(b, t, dtype=torch.bool),
        "task": [SENTENCES[i % 3] for i in range(b)],
    }
    for camera, (h, w) in SPEC.cameras.items():
        for kind in ("observation", "future"):
            out[f"{kind}.images.{camera}"] = torch.randint(0, 256, (b, t, h, w, 3), dtype=torch.uint8, generator=g)
    return out


def video_batch(b: int) -> dict:
    keep = ("observation.images.static", "future.images.static", "frame.mask", "future.mask", "task")
    return {k: v for k, v in batch(b).items() if k in keep}


def observation(n: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = {
        f"observation.images.{c}": rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8) for c, (h, w) in SPEC.cameras.items()
    }
    state = rng.normal(size=(n, 15)).astype(np.float32)
    return {**images, "observation.state": state, "task": [SENTENCES[i % 3] for i in range(n)]}


def take(observation: dict, worlds) -> dict:
    """The observation of some worlds, in that order."""
    return {k: [v[i] for i in worlds] if isinstance(v, list) else v[list(worlds)] for k, v in observation.items()}


def played(net: GR1Policy, frames: list[dict], chosen: list[int]) -> np.ndarray:
    """Actions (worlds, frames, chunk, 7) of `chosen` worlds, seeded by their numbers, shown one frame after another."""
    memory, out = net.begin(chosen), []
    for frame in frames:
        actions, memory = net.act(take(frame, chosen), memory)
        out.append(actions)
    return np.stack(out, 1)
