"""Who may look at whom."""

from __future__ import annotations

import torch
from torch import Tensor


def token_steps(steps: int, inputs: int, actions: int, foresight: int, query_steps: list[int], device: torch.device) -> Tensor:
    """The step of every token of the sequence that `attention_mask` describes, int64 (S,)."""
    queries = torch.tensor(query_steps, device=device)
    inputs_of = torch.arange(steps, device=device).repeat_interleave(inputs)
    return torch.cat([inputs_of, queries.repeat_interleave(actions), queries.repeat_interleave(foresight)])


def attention_mask(
    valid: Tensor,
    inputs: int,
    actions: int,
    foresight: int,
    query_steps: list[int],
    act_sees_foresight: bool,
    band: int | None = None,
) -> Tensor:
    """The attention rules of GR-1 as bool (B, S, S); [b, i, j] True: token i may look at token j.

    valid: bool (B, T), False for padded steps. Each of the T steps has `inputs` input tokens (I: language, state, images).
    The steps in `query_steps` also have `actions` [ACT] queries (A) and `foresight` [OBS] queries (O). The sequence is

        I0 I0 I0 I1 I1 I1 ... | A A  A A ... | O O  O O ...        inputs by step, then [ACT] by step, then [OBS] by step

    For T = 2, inputs 2, one A and one O per step, x = may look (o = only with `act_sees_foresight`):

                  I0 I0' I1 I1'  A0 A1  O0 O1
             I0   x
             I0'  x  x                             inputs: causal by order
             I1   x  x   x
             I1'  x  x   x  x
             A0   x  x                  o          queries: all inputs of their own and earlier steps;
             A1   x  x   x  x              o       actions: their own step's foresight, if so configured
             O0   x  x
             O1   x  x   x  x

    Queries are looked at by nobody else, not even by themselves, so leaving them out changes nothing for the rest. Keys of
    padded steps are looked at by nobody. A token that would see nothing (in a padded step) sees itself, so that its
    softmax is defined; its output is never used. With `band` nobody looks further back than the last `band` steps, their own
    among them.
    """
    steps, device = valid.shape[1], valid.device
    step = token_steps(steps, inputs, actions, foresight, query_steps, device)
    order = torch.arange(len(step), device=device)
    first_action, first_foresight = steps * inputs, steps * inputs + len(query_steps) * actions
    is_input, is_foresight = order < first_action, order >= first_foresight
    is_action = ~is_input & ~is_foresight
    causal = is_input[:, None] & (order[None] <= order[:, None])
    past = ~is_input[:, None] & (step[None] <= step[:, None])
    allowed = (causal | past) & is_input[None]
    if act_sees_foresight:
        allowed = allowed | (is_action[:, None] & is_foresight[None] & (step[:, None] == step[None]))
    if band is not None:
        allowed = allowed & (step[:, None] - step[None] < band)
    allowed = allowed & valid[:, step][:, None, :]
    blind = ~allowed.any(-1)
    return allowed | (blind[:, :, None] & torch.eye(len(step), dtype=torch.bool, device=device))
