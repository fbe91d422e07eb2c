"""CPU time of a control step of GR-1 at `gr1_small`'s size, by history: a window computed anew, or a stream of frames.

    OMP_NUM_THREADS=1 python -m benchmarks.streaming

Windows (`policy.time=index`) put the tokens of all `history` frames through the trunk at every step, streams
(`policy.time=rotary`, policies/gr1/stream.py) those of the new frame. Both encode only the new frame, of the same pictures. One
thread, process CPU time, the two forms in turns, medians; weights are random. The error is the largest difference of the
streamed actions from those of the whole sequence at once. Writes benchmarks/results/streaming.md.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from benchmarks.machine import machine
from policies.gr1.official import SHAPE
from policies.gr1.policy import GR1Policy
from policies.nn.images import normalise
from vla.checkpoint import build_policy
from vla.spec import STATE, TASK, image_key

HISTORIES = (1, 4, 10, 30)
SENTENCE = "open the drawer"


@cache
def config() -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        return OmegaConf.create(OmegaConf.to_container(compose("train", overrides=["policy=gr1_small"]).policy))


def small(**changes: Any) -> GR1Policy:
    torch.manual_seed(0)
    changed: Any = OmegaConf.merge(config(), {"gripper_rule": "threshold"}, changes)
    policy: Any = build_policy(changed, SHAPE)
    return policy.eval()


def observation(worlds: int, rng: np.random.Generator) -> dict[str, Any]:
    images = {image_key(c): rng.integers(0, 256, (worlds, *size, 3), np.uint8) for c, size in SHAPE.cameras.items()}
    return {**images, STATE: rng.normal(size=(worlds, 15)).astype(np.float32), TASK: [SENTENCE] * worlds}


def costs(history: int, worlds: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a step of one world, window and stream."""
    policies = [small(history=history, time=kind, micro_batch=worlds) for kind in ("index", "rotary")]
    memories, spent = [p.begin([0] * worlds) for p in policies], [[], []]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        seen = observation(worlds, rng)
        for i, policy in enumerate(policies):
            start = time.process_time()
            _, memories[i] = policy.act(seen, memories[i])
            spent[i].append(1e3 * (time.process_time() - start) / worlds)
    window, stream = (float(np.median(times[1:])) for times in spent)
    return window, stream


@torch.no_grad()
def error(history: int) -> float:
    """Of streamed actions, after twice the history and three steps."""
    policy, rng = small(history=history, time="rotary", micro_batch=1), np.random.default_rng(1)
    memory, frames, actions = policy.begin([0]), [], np.zeros(0)
    model, t = policy.model, 2 * history + 3
    for _ in range(t):
        seen = observation(1, rng)
        actions, memory = policy.act(seen, memory)
        pictures = {c: policy.transform.resize(torch.from_numpy(seen[image_key(c)])[None])[0] for c in model.cameras}
        images = {c: normalise(picture) for c, picture in pictures.items()}
        frames.append(model.frame(images, torch.from_numpy(seen[STATE]), model.text([SENTENCE]))[0])
    features, _ = model.think(torch.stack(frames, dim=1), torch.ones(1, t, dtype=torch.bool), [t - 1], act=True, foresee=False)
    assert features is not None
    assert policy.head is not None
    expected = policy.head.act(features[:, 0], torch.full((1, 1), 0.5)).clamp(-1, 1).numpy()
    return float(np.abs(actions - expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--out", default="benchmarks/results/streaming.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| history | worlds | window, ms a step and world | stream, ms | window / stream | largest error of the stream |",
        "|---|---|---|---|---|---|",
    ]
    for history in HISTORIES:
        wrong = error(history)
        for worlds in (1, 8):
            window, stream = costs(history, worlds, options.steps)
            lines.append(f"| {history} | {worlds} | {window:.2f} | {stream:.2f} | {window / stream:.1f} | {wrong:.1e} |")
            print(lines[-1], flush=True)
    purpose = (__doc__ or "").split("\n\n")
    whole = ["# Streaming", *(part.strip("\n") for part in purpose), machine(), "\n".join(lines)]
    Path(options.out).write_text("\n\n".join(whole) + "\n")


if __name__ == "__main__":
    main()
