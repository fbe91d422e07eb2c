"""From [ACT] outputs to action chunks as networks see them (policies/nn/actions.py): numbers, and commands of -1 or +1."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from policies.nn.actions import Kinds
from policies.nn.inpainting import guided, keep
from policies.nn.transformer import ACTIVATIONS, sincos
from vla.spec import UserError


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` where `weight` counts; 0 where nothing does."""
    weight = weight.expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


class Regression(nn.Module):
    """Smooth-L1 on the numbers (`arm`), binary cross-entropy on the commands (`gripper`), if there are any.

    hidden and activation: layers between the query and the output; `none` (published) leaves them linear.
    gripper_rule: `threshold` opens at a probability above 0.5; `sample` opens with the predicted probability, by one
    uniform number per chunk, so that within a chunk the hand moves only when the probability crosses it.
    """

    def __init__(
        self,
        kinds: Kinds,
        width: int,
        queries: int,
        chunk: int,
        beta: float,
        decay: float,
        gripper_rule: str,
        hidden: Sequence[int],
        activation: str,
    ):
        super().__init__()
        if gripper_rule not in ("threshold", "sample"):
            raise UserError(f"gripper_rule {gripper_rule!r} is unknown: use threshold or sample.")
        self.kinds, self.chunk, self.beta, self.decay, self.gripper_rule = kinds, chunk, beta, decay, gripper_rule
        self.activation = nn.Identity() if activation == "none" else ACTIVATIONS[activation]
        sizes = [width, *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        each = chunk // queries
        self.arm = nn.Linear(sizes[-1], len(kinds.numbers) * each) if kinds.numbers else None
        self.gripper = nn.Linear(sizes[-1], len(kinds.commands) * each) if kinds.commands else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[ACT] outputs (M, queries, width) -> numbers (M, chunk, n), logits of commands (M, chunk, c)."""
        for layer in self.layers:
            features = self.activation(layer(features))
        none = features.new_zeros(len(features), self.chunk, 0)
        numbers, commands = (
            none if layer is None else layer(features).reshape(len(features), self.chunk, -1)
            for layer in (self.arm, self.gripper)
        )
        return numbers.float(), commands.float()

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """actions (M, chunk, A), mask (M, chunk) -> unweighted parts `arm` and `gripper`."""
        arm, logits = self(features)
        weight = (mask * self.decay ** torch.arange(self.chunk, device=mask.device))[..., None]
        parts: dict[str, Tensor] = {}
        if self.kinds.numbers:
            wanted = actions[..., self.kinds.numbers]
            parts["arm"] = weighted_mean(F.smooth_l1_loss(arm, wanted, beta=self.beta, reduction="none"), weight)
        if self.kinds.commands:
            opened = (actions[..., self.kinds.commands] > 0).float()
            parts["gripper"] = weighted_mean(F.binary_cross_entropy_with_logits(logits, opened, reduction="none"), weight)
        return parts

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The random numbers of one world's chunk."""
        return generator.random(1, dtype=np.float32) if self.gripper_rule == "sample" else np.full(1, 0.5, np.float32)

    def act(self, features: Tensor, draws: Tensor, *, free: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """[ACT] outputs (M, queries, width) and draws (M, 1) -> actions (M, chunk, A).

        free: the same outputs without the instruction, from which mean and logits are extrapolated by `guidance`.
        """
        arm, logits = self(features)
        if free is not None:
            arm, logits = (torch.lerp(without, said, guidance) for without, said in zip(self(free), (arm, logits), strict=True))
        opened = logits.sigmoid() > draws[..., None]
        return self.kinds.joined(arm, opened * 2.0 - 1.0)


class Flow(nn.Module):
    """Flow matching: a small residual network carries noise to a whole chunk (commands included) in `steps` Euler steps.

    At level s in 0..1 the chunk is (1 - s) * actions + s * noise and the network predicts noise - actions. `draws` levels
    are trained per sample, since the network here is small beside what comes before it.
    """

    def __init__(self, kinds: Kinds, width: int, queries: int, chunk: int, hidden: int, blocks: int, draws: int, steps: int):
        super().__init__()
        self.kinds, self.chunk, self.draws, self.steps, self.hidden = kinds, chunk, draws, steps, hidden
        self.context = nn.Linear(queries * width, hidden)
        self.level = nn.Linear(hidden, hidden)
        self.enter = nn.Linear(chunk * kinds.count, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Linear(2 * hidden, 2 * hidden) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in range(blocks))
        self.leave = nn.Linear(hidden, chunk * kinds.count)
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)

    def velocity(self, noisy: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """noisy (M, chunk, A), level (M,) in 0..1, context (M, hidden) -> noise - actions, (M, chunk, A)."""
        condition = F.silu(context + self.level(sincos(1000 * level, self.hidden)))
        x = self.enter(noisy.flatten(1))
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(F.silu(up(torch.cat([norm(x), condition], dim=-1))))
        return self.leave(x).unflatten(-1, (self.chunk, self.kinds.count)).float()

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """actions (M, chunk, A), mask (M, chunk) -> unweighted part `flow`."""
        context = self.context(features.flatten(1)).repeat(self.draws, 1)
        actions, mask = actions.repeat(self.draws, 1, 1), mask.repeat(self.draws, 1)
        level, noise = torch.rand(len(actions), device=actions.device), torch.randn_like(actions)
        noisy = torch.lerp(actions, noise, level[:, None, None])
        error = (self.velocity(noisy, level, context) - (noise - actions)).square()
        return {"flow": weighted_mean(error, mask[..., None].float())}

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """The random numbers of one world's chunk."""
        return generator.standard_normal((self.chunk, self.kinds.count), dtype=np.float32)

    def guided_velocity(self, noisy: Tensor, level: Tensor, context: Tensor, free: Tensor | None, guidance: float) -> Tensor:
        """`velocity`, extrapolated by `guidance` from that of the context without the instruction, `free`, if it is given."""
        velocity = self.velocity(noisy, level, context)
        return velocity if free is None else torch.lerp(self.velocity(noisy, level, free), velocity, guidance)

    def act(self, features: Tensor, draws: Tensor, *plan: Tensor, free: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """[ACT] outputs (M, queries, width) and noise (M, chunk, A) -> actions (M, chunk, A).

        plan: actions (M, chunk, A) and weights (M, chunk) to go on from (policies.nn.inpainting), or nothing. free: the same
        outputs without the instruction, see `guided_velocity`.
        """
        context, x = self.context(features.flatten(1)), draws
        without = None if free is None else self.context(free.flatten(1))
        self.scheduler.set_timesteps(sigmas=[1 - i / self.steps for i in range(self.steps)], device=x.device)
        for time in self.scheduler.timesteps:
            level = (time / 1000).expand(len(x))
            situation = {"level": level, "context": context, "free": without, "guidance": guidance}
            velocity = functools.partial(self.guided_velocity, **situation)
            way = guided(velocity, x, float(level[0]), *plan) if plan else velocity(x)
            x = self.scheduler.step(way, time, x, return_dict=False)[0]
        actions = self.kinds.decided(x)
        return keep(actions, *plan) if plan else actions


def build_head(
    config: Mapping[str, Any],
    kinds: Kinds,
    width: int,
    queries: int,
    chunk: int,
    loss: Mapping[str, float],
    gripper_rule: str,
) -> Regression | Flow:
    """The head named by config["name"]: `regression` or `flow`; the other keys are its numbers."""
    config = dict(config)
    name = config.pop("name")
    if name == "flow":
        return Flow(kinds, width, queries, chunk, **config)
    if name != "regression":
        raise UserError(f"action head {name!r} is unknown: use regression or flow.")
    rules = {"beta": loss["beta"], "decay": loss["decay"], "gripper_rule": gripper_rule}
    return Regression(kinds, width, queries, chunk, **rules, **config)
