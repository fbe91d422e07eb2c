"""Real-time chunking: a flow is bent so that the chunk it leads to goes on from a plan.

After Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow Policies", equations 2 to 4. Here the noise
level falls from 1 to 0 (the paper's time is 1 - level) and velocities are noise - actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from policies.nn.actions import Actions
from vla.spec import PLAN, PLAN_WEIGHT

BETA = 5.0
"""Largest weight of the guidance, as the paper recommends for few steps; without it the first step would be infinite."""


def read_plan(observation: Mapping[str, Any], horizon: int, device: torch.device, actions: Actions) -> tuple[Tensor, ...]:
    """The plan that an observation shows, as long as a chunk and as `actions` shows it to networks: actions (N, horizon, A),
    weights (N, horizon); or nothing."""
    if PLAN not in observation:
        return ()
    plan = []
    for name in (PLAN, PLAN_WEIGHT):
        shown = torch.as_tensor(observation[name], dtype=torch.float32, device=device)[:, :horizon]
        whole = shown.new_zeros(shown.shape[0], horizon, *shown.shape[2:])
        whole[:, : shown.shape[1]] = shown
        plan.append(whole)
    return actions.normal(plan[0]), plan[1]


def guidance_weight(level: float) -> float:
    """How strongly the plan pulls at a noise level in (0, 1]: min(BETA, (1 - t) / (t r^2)), t = 1 - level,
    r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)."""
    t = 1 - level
    return min(BETA, (t**2 + level**2) / (t * level)) if t > 0 else BETA


def guided(velocity: Callable[[Tensor], Tensor], x: Tensor, level: float, plan: Tensor, weight: Tensor) -> Tensor:
    """The velocity at x (M, chunk, A) and a noise level, bent towards `plan` (M, chunk, A) where `weight` (M, chunk) counts.

    The error of the chunk that x leads to is taken back to x through the network (a vector-Jacobian product).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found = velocity(x)
        actions = x - level * found
    error = weight[..., None] * (plan - actions.detach())
    (pull,) = torch.autograd.grad(actions, x, error)
    return found.detach() - guidance_weight(level) * pull


def keep(actions: Tensor, plan: Tensor, weight: Tensor) -> Tensor:
    """A finished chunk (M, chunk, A) with the planned actions where their weight is 1: they are executed, whatever it says."""
    return torch.where(weight[..., None] >= 1, plan, actions)
