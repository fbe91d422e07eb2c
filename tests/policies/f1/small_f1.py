"""A tiny F1 with every part, and batches and observations for it."""

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

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


def tokenizer_config(kind: str = "vq") -> dict:
    """16 px, 21 tokens of 3 scales, 32 codes."""
    shape = OmegaConf.to_container(OmegaConf.load(f"conf/tokenizer/{kind}_small.yaml"))
    small = {"size": 16, "unshuffle": 2, "channels": [8, 16], "decoder_channels": [8, 16], "groups": 4, "latent": 8}
    return {**shape, **small, "scales": [1, 2, 4], **({"codes": 32} if kind == "vq" else {})}


def tokenizer_policy(kind: str = "vq"):
    torch.manual_seed(0)
    return build_policy({"_target_": "policies.f1.reconstruction.TokenizerPolicy", **_reconstruction(kind)}, SPEC)


def _reconstruction(kind: str = "vq") -> dict:
    base = OmegaConf.to_container(OmegaConf.load("conf/policy/f1_tokenizer.yaml"))
    return {k: v for k, v in base.items() if k not in ("defaults", "_target_")} | {"tokenizer": tokenizer_config(kind)}


tokenizer_policy.config = _reconstruction


def pictures(n: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    """Smooth random pictures, uint8 (n, size, size, 3)."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def observation(n: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = {
        f"observation.images.{c}": pictures(n, 10 * seed + i, h).numpy() for i, (c, (h, _)) in enumerate(SPEC.cameras.items())
    }
    state = rng.normal(size=(n, 15)).astype(np.float32)
    return {**images, "observation.state": state, "task": [SENTENCES[i % 3] for i in range(n)]}


def config(kind: str = "vq", **changes):
    tiny = {
        "size": 16,
        "chunk": 4,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "head_width": 8,
        "tokenizer": tokenizer_config(kind),
        "cameras": {"static": {"pad": 1}, "wrist": {"pad": 1}},
        "understanding": {
            "width": 16,
            "hidden": 24,
            "language": 8,
            "text": {"pooling": 1},
            "vision": {"name": "conv", "channels": [8, 8, 8, 8], "reduced": 4, "cls_width": 16},
            "resampler": {"latents": 2, "heads": 1, "head_width": 8},
        },
        "generation": {"width": 24, "hidden": 32},
        "action": {"width": 16, "hidden": 24},
        "foresight": {"scales": 2, "history_scales": 3},
    }
    base = OmegaConf.load("conf/policy/f1_small.yaml")
    del base.defaults
    if "name" in changes.get("understanding", {}):
        base.understanding, tiny["understanding"] = {}, {}
    return OmegaConf.merge(base, tiny, changes)


def policy(spec: Spec = SPEC, kind: str = "vq", seed: int = 0, **changes):
    """A tiny F1 whose weights are large enough to matter."""
    torch.manual_seed(seed)
    net = build_policy(config(kind, **changes), spec)
    with torch.no_grad():
        for name, parameter in net.model.named_parameters():
            if parameter.ndim >= 2 and ("layers" in name or "position" in name):
                parameter.mul_(8)
        net.tokenizer.steps.fill_(1)
    return net


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
    for i, (camera, (h, _)) in enumerate(SPEC.cameras.items()):
        for k, kind in enumerate(("observation", "future")):
            out[f"{kind}.images.{camera}"] = pictures(b * t, 100 * seed + 2 * i + k, h).unflatten(0, (b, t))
    return out


def video_batch(b: int) -> dict:
    keep = ("observation.images.static", "future.images.static", "frame.mask", "future.mask", "task")
    return {k: v for k, v in batch(b).items() if k in keep}


def take(observation: dict, worlds) -> dict:
    """The observation of some worlds, in that order."""
    return {k: [v[i] for i in worlds] if isinstance(v, list) else v[list(worlds)] for k, v in observation.items()}


def composed(name: str):
    """A policy's config as it is."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", overrides=[f"policy={name}"]).policy
