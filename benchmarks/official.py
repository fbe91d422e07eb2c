"""GR-1 at its published size: CPU time of a control step and of a training step, beside what the original does.

    OMP_NUM_THREADS=1 python -m benchmarks.official acting
    OMP_NUM_THREADS=1 python -m benchmarks.official training

The peer is benchmarks/original.py in the same run: the original's steps written with our modules, around the same weights. One
thread, process CPU time, medians. Weights are random and seeded, scaled so that every layer passes on what it gets.

Control steps: one world, the playtable, EVERY control steps apart so that pictures differ. Errors are the largest differences
of the arm's six numbers from ours in float32, beside the standard deviation of those numbers over the steps. There are no
published weights on this machine, so extras have errors here but no success; random weights amplify small differences more
than trained ones.

Training steps: GR1-Training's size (chunks of 10, 520 tokens), batches of 2 windows of 10 frames: pictures through the
encoder, losses of actions and of both cameras' frames, gradients, fused AdamW. Features are kept as policies/nn/recall.py does,
which is exact, but finds nothing where pictures are shifted at random: `first epoch` is also the cost with random shifts.

Writes benchmarks/results/official_acting.md and official_training.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.machine import machine
from benchmarks.original import Evaluation, Training, train
from policies.gr1.official import SHAPE
from policies.gr1.policy import GR1Policy
from vla.checkpoint import build_policy
from vla.spec import ACTION, STATE, TASK, image_key
from vla.training.optimizer import adamw

VIT = {"name": "vit", "patch": 16, "width": 768, "layers": 12, "heads": 12}
CLIP = {
    "name": "clip", "pooling": 0, "vocabulary": 49408, "tokens": 77, "width": 512, "layers": 12, "heads": 8, "summary": 512,
}  # fmt: skip
"""What vla-convert makes of the published encoders."""
SENTENCE = "slide the door to the left side"
EVERY = 8
CHUNKS = {"chunk": 10, "action_queries": 10, "token_positions": 1024, "resize": "bicubic_antialias"}
"""What GR1-Training changed."""
BATCH = 2
STEPS, PEER_STEPS, EXTRAS = 12, (0, 4, 11), 6
"""Our control steps; those of them that the peer makes too; and how many of them the extras make."""


def published(tokenizer: Path, **changes: Any) -> GR1Policy:
    """`policy=gr1` with encoders of its own, seeded random weights, and a range of actions that cuts nothing off."""
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.create(OmegaConf.to_container(compose("train", overrides=["policy=gr1"]).policy))
    config.vision, config.text = VIT, {**CLIP, "tokenizer": str(tokenizer)}
    spec = replace(SHAPE, action=tuple(replace(e, low=-1e3, high=1e3) for e in SHAPE.action))
    torch.manual_seed(0)
    changed: Any = OmegaConf.merge(config, changes)
    policy: Any = build_policy(changed, spec)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        if parameter.ndim > 1:
            deviation = parameter[0].numel() ** -0.5
            parameter.data.normal_(0, deviation, generator=generator)
    return policy.eval()


def write_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer, but with letters alone for a vocabulary."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))
    return folder


def observations(steps: int) -> list[dict[str, Any]]:
    """What one playtable world shows while its hand moves about, one observation a step."""
    with initialize_config_module("conf", version_base="1.3"):
        world = instantiate(compose("evaluate").env.world, num_worlds=1, _convert_="all")
    rng = np.random.default_rng(0)
    seen, _ = world.reset(seed=0)
    out = []
    for _ in range(steps):
        out.append({name: np.array(value) for name, value in seen.items()} | {TASK: [SENTENCE]})
        drift = rng.uniform(-1, 1, (1, 7)).astype(np.float32)
        for _ in range(EVERY):
            seen, *_ = world.step(drift)
    world.close()
    return out


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of a call, and what it gave."""
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


@dataclass
class Way:
    """One way to make a control step, and what was measured of it."""

    name: str
    step: Callable[[Mapping[str, Any]], np.ndarray]
    seconds: list[float] = field(default_factory=list)
    actions: dict[int, np.ndarray] = field(default_factory=dict)

    def at(self, step: int, observation: Mapping[str, Any]) -> None:
        taken, self.actions[step] = spent(lambda: self.step(observation))
        self.seconds.append(taken)


def remembering(policy: GR1Policy) -> Callable[[Mapping[str, Any]], np.ndarray]:
    """Our control step, one world with its memory."""
    memory = policy.begin([0])

    def step(observation: Mapping[str, Any]) -> np.ndarray:
        nonlocal memory
        actions, memory = policy.act(observation, memory)
        return actions[0]

    return step


def half(policy: GR1Policy, tokenizer: Path) -> GR1Policy:
    """The same weights for images of half the size: positions of patches are averaged in fours."""
    small = published(tokenizer, size=policy.size // 2)
    weights = dict(policy.state_dict())
    position = weights["model.vision.all.position"]
    grid = int((len(position) - 1) ** 0.5)
    cells = position[1:].T.reshape(1, -1, grid, grid)
    averaged = torch.nn.functional.avg_pool2d(cells, 2).flatten(2)[0].T
    weights["model.vision.all.position"] = torch.cat([position[:1], averaged])
    weights["model.decoder.position"] = small.state_dict()["model.decoder.position"]
    small.load_state_dict(weights)
    return small


def compiled(tokenizer: Path) -> GR1Policy:
    policy = published(tokenizer)
    for encoder in policy.model.vision.values():
        encoder.compile()
    return policy


def acting(tokenizer: Path) -> str:
    """The table of control steps."""
    policy = published(tokenizer)
    original = Evaluation(policy)
    ours, peer = Way("ours", remembering(policy)), Way("the original's step", original.act)
    seen = observations(STEPS)
    bf16 = published(tokenizer, precision="bf16")
    small = half(policy, tokenizer)
    extras = [
        Way("ours, bf16 autocast", remembering(bf16)),
        Way("ours, encoder compiled", remembering(compiled(tokenizer))),
        Way("ours, images of 112 px", remembering(small)),
    ]
    for step, observation in enumerate(seen):
        for way in (ours, *extras) if step < EXTRAS else (ours,):
            way.at(step, observation)
        if step in PEER_STEPS:
            peer.at(step, observation)
        else:
            original.look(observation)
    deviation = np.std([a[..., :6] for a in ours.actions.values()], axis=0).mean()
    lines = [
        f"| control step | CPU-s | the original's / this | largest error (deviation {deviation:.2f}) | gripper differs |",
        "|---|---|---|---|---|",
    ]
    against = float(np.median(peer.seconds))
    for way in (peer, ours, *extras):
        # Except for the peer the first step is not counted: compilers and caches get ready in it.
        cost = float(np.median(way.seconds if way is peer else way.seconds[1:]))
        pairs = [(way.actions[s], ours.actions[s]) for s in way.actions]
        error = max(float(np.abs(a - b)[..., :6].max()) for a, b in pairs)
        flips = sum(int((a[..., 6] != b[..., 6]).sum()) for a, b in pairs)
        lines.append(f"| {way.name} | {cost:.3f} | {against / cost:.1f} | {error:.1e} | {flips} of {len(pairs)} steps |")
    return "\n".join(lines)


def windows(seed: int) -> dict[str, Any]:
    """A batch as vla/data/windows.py makes them, of noise."""
    g = torch.Generator().manual_seed(seed)
    b, t, chunk = BATCH, 10, CHUNKS["chunk"]
    batch: dict[str, Any] = {
        STATE: torch.randn(b, t, 15, generator=g),
        ACTION: torch.rand(b, t, chunk, 7, generator=g) * 2 - 1,
        "action.mask": torch.ones(b, t, chunk, dtype=torch.bool),
        "frame.mask": torch.ones(b, t, dtype=torch.bool),
        "future.mask": torch.ones(b, t, dtype=torch.bool),
        TASK: [SENTENCE, SENTENCE[:20]],
    }
    for camera, size in SHAPE.cameras.items():
        for name in (image_key(camera), f"future.images.{camera}"):
            batch[name] = torch.randint(0, 256, (b, t, *size, 3), dtype=torch.uint8, generator=g)
    return batch


def training(tokenizer: Path) -> str:
    """The table of training steps. The learning rate is 0, so that all do the same and their losses can be compared."""
    cameras = {camera: {"pad": 0} for camera in SHAPE.cameras}
    policy = published(tokenizer, **CHUNKS, cameras=cameras, vision={"remember": 1000}).train()
    optimizer, batch = adamw(policy, 0.0, 1e-4, policy.device), windows(0)
    encoder: Any = policy.model.vision["all"]
    original, measured = Training(policy, optimizer), {}

    def measure(name: str, step: Callable[[], float], remember: int) -> None:
        encoder.recall.capacity = remember
        torch.manual_seed(0)  # of dropout
        measured.setdefault(name, []).append(spent(step))
        print(name, measured[name][-1], flush=True)

    for precision in ("fp32", "bf16"):
        measure("GR1-Training's step", lambda: original.step(batch), 0)
        for epoch in ("first epoch", "later epochs", "later epochs"):
            measure(f"ours, {precision}, {epoch}", lambda p=precision: train(policy, optimizer, batch, p), 1000)
    lines = ["| training step | CPU-s | windows per CPU-s | this / GR1-Training's | loss |", "|---|---|---|---|---|"]
    cost = {name: float(np.median([seconds for seconds, _ in steps])) for name, steps in measured.items()}
    against = cost["GR1-Training's step"]
    for name, seconds in cost.items():
        rate = f"{BATCH / seconds:.3f} | {against / seconds:.2f}"
        lines.append(f"| {name} | {seconds:.1f} | {rate} | {measured[name][0][1]:.6g} |")
    return "\n".join(lines)


PARTS = {"acting": acting, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        table = PARTS[options.part](write_tokenizer(Path(made) / "tokenizer"))
    print(table)
    common, *parts = (__doc__ or "").split("\n\n")[2:]
    title, purpose = f"# GR-1 at its published size: {options.part}", parts[list(PARTS).index(options.part)]
    command = f"    OMP_NUM_THREADS=1 python -m benchmarks.official {options.part}"
    Path(options.out, f"official_{options.part}.md").write_text(
        "\n\n".join([title, purpose.strip("\n"), common.strip("\n"), command, machine(), table]) + "\n"
    )


if __name__ == "__main__":
    main()
