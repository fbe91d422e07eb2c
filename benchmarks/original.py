"""What the original does in a control step and in a training step, written with our modules: the peer of benchmarks.official.

GR-1's evaluation keeps the last ten observations and at every step runs the whole model on them: the instruction through CLIP's
text tower (77 tokens), ten frames of each camera through ViT-B (black ones where there are none yet, at the end of the window),
all tokens through the trunk. GR1-Training's step encodes every frame of every window, under autograd, and steps AdamW.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.gr1.policy import GR1Policy
from policies.nn.images import normalise
from vla.spec import STATE, TASK, image_key


class Evaluation:
    """The original's evaluation step around the weights of `policy`; one world."""

    def __init__(self, policy: GR1Policy):
        self.policy, self.model = policy, policy.model
        self.seen: deque[tuple[dict[str, Tensor], Tensor]] = deque(maxlen=policy.window)

    @torch.no_grad()
    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Actions float32 (chunk, 7), not clipped."""
        self.look(observation)
        model, window = self.model, self.policy.window
        absent = window - len(self.seen)
        first, state = self.seen[0]
        blank = [({c: torch.zeros_like(x) for c, x in first.items()}, torch.zeros_like(state))] * absent
        frames = [*self.seen, *blank]
        tokens, _ = model.frame(
            {c: torch.cat([pictures[c] for pictures, _ in frames]) for c in model.cameras},
            torch.cat([state for _, state in frames]),
            self.language(observation[TASK][0]).expand(window, -1),
        )
        valid = torch.arange(window)[None] < len(self.seen)
        acts, _ = model.think(tokens[None], valid, list(range(window)), act=True, foresee=False)
        assert acts is not None
        assert self.policy.head is not None
        return self.policy.head.act(acts[:, len(self.seen) - 1], torch.full((1, 1), 0.5))[0].numpy()

    def look(self, observation: Mapping[str, Any]) -> None:
        """Put an observation of one world into the buffer."""
        resize, cameras = self.policy.transform.resize, self.model.cameras
        images = {c: normalise(resize(torch.from_numpy(observation[image_key(c)])[None])[0]) for c in cameras}
        self.seen.append((images, torch.from_numpy(observation[STATE]).float()))

    def language(self, sentence: str) -> Tensor:
        """The instruction's vector (1, language), all of CLIP's 77 tokens computed."""
        clip: Any = self.model.text.clip
        clip.encode(sentence)  # reads the tokenizer
        ids = clip._tokenizer(sentence, return_tensors="pt").input_ids[0]
        padded = torch.zeros(len(clip.position), dtype=torch.long)
        padded[: len(ids)] = ids
        x = (clip.tokens[padded] + clip.position)[None]
        causal = torch.ones(len(padded), len(padded), dtype=torch.bool).tril()[None, None]
        for block in clip.blocks:
            x = block(x, causal)
        vector = clip.project(clip.norm(x[0, len(ids) - 1]))
        return self.model.text.project(vector / (vector.norm() + 1e-6))[None]


class Training:
    """GR1-Training's step around `policy`, whose encoder must remember nothing then: every frame of every window is encoded."""

    def __init__(self, policy: GR1Policy, optimizer: torch.optim.Optimizer):
        self.policy, self.optimizer, self.evaluation = policy, optimizer, Evaluation(policy)

    def step(self, batch: Mapping[str, Any]) -> float:
        """One step on a batch of windows; the loss."""
        with torch.no_grad():
            for sentence in batch[TASK]:  # ours would find them in its cache
                self.evaluation.language(sentence)
        return train(self.policy, self.optimizer, batch)


def train(policy: GR1Policy, optimizer: torch.optim.Optimizer, batch: Mapping[str, Any], precision: str = "fp32") -> float:
    """Loss, gradients and a step of the optimizer, as vla-train has them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss, _ = policy(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)
