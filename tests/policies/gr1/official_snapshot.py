"""Weights and inputs by the recipe of official.md: what the numbers in official.npz were computed from."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def reference() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("official.npz")) as file:
        return dict(file)


def draw(name: str, *shape: int) -> Tensor:
    """Uniform in -1..1, from a seed that is the name's own."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(np.asarray(2 * rng.random(shape, dtype=np.float32) - 1))


def snapshot(kind: str = "snapshot") -> dict[str, Tensor]:
    """A state dict with the names and shapes of the original's: snapshot, snapshot_with_chunks, snapshot_with_encoders."""
    state = {}
    for name, shape in json.loads(str(reference()[kind])).items():
        tensor = draw(name, *shape)
        if len(shape) > 1:
            tensor *= (3 / shape[-1]) ** 0.5
        elif len(shape) == 1:
            tensor = 1 + 0.2 * tensor if name.endswith("weight") else 0.1 * tensor
        state[name] = tensor
    return state


def features(b: int, cls: int = 40, patch: int = 32, language: int = 24) -> dict[str, Tensor]:
    """What the encoders would give for b windows of ten frames, and the states."""
    out = {}
    for camera in ("static", "wrist"):
        out[f"{camera}_cls"] = draw(f"{camera}_cls", b, 10, cls)
        out[f"{camera}_patch"] = draw(f"{camera}_patch", b, 10, 196, patch)
    out["arm"] = draw("arm", b, 10, 6)
    out["gripper"] = torch.nn.functional.one_hot((draw("gripper", b, 10) > 0).long(), 2).float()
    out["language"] = 3 * draw("language", b, language)
    return out


def observation(step: int) -> dict:
    """One world's observation in blocks of 4x4 pixels, as bytes, and its state with the gripper's command at its end."""
    out: dict = {"task": ["open the drawer"]}
    for camera, side in (("static", 200), ("wrist", 84)):
        cells = ((draw(f"{camera}{step}", side // 4, side // 4, 3) + 1) * 127.5).numpy().astype(np.uint8)
        out[f"observation.images.{camera}"] = cells.repeat(4, 0).repeat(4, 1)[None]
    state = draw(f"state{step}", 15).numpy()
    state[14] = np.sign(state[14])
    out["observation.state"] = state[None]
    return out


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer as the hub has it, but tiny: letters as vocabulary, no merges."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
