"""The guidance of real-time chunking against the paper's formulas, in the paper's own time, and what it is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.nn.actions import Actions
from policies.nn.inpainting import BETA, guidance_weight, guided, keep, read_plan
from vla.executor import prefix_weights
from vla.spec import PLAN, PLAN_WEIGHT, Entry

HORIZON, ENTRIES = 12, 2


@given(t=st.floats(1e-6, 0.999))
def test_the_guidance_weight_is_the_papers(t):
    r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
    assert guidance_weight(1 - t) == pytest.approx(min(BETA, (1 - t) / (t * r2)), rel=1e-6)
    assert guidance_weight(1.0) == BETA


@pytest.mark.parametrize("level", [1.0, 0.6, 0.25])
def test_guidance_is_the_vector_jacobian_product_of_the_papers(level):
    """v + min(beta, ...) (Y - A)^T diag(W) dA/dx with A = x + (1 - t) v, for each row by itself."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(HORIZON * ENTRIES, 32), torch.nn.Tanh(), torch.nn.Linear(32, 24))

    def velocity(x):
        return network(x.flatten(1)).unflatten(1, (HORIZON, ENTRIES))

    x, plan = torch.randn(3, HORIZON, ENTRIES), torch.randn(3, HORIZON, ENTRIES)
    weight = torch.rand(3, HORIZON)
    with torch.no_grad():
        found = guided(velocity, x, level, plan, weight)
    assert not found.requires_grad
    assert all(p.grad is None for p in network.parameters())
    for i in range(3):

        def estimate(row):
            their_velocity = -velocity(row[None])[0]  # the paper's goes from noise to actions
            return row + level * their_velocity

        jacobian = torch.autograd.functional.jacobian(estimate, x[i]).reshape(24, 24)
        error = ((plan[i] - estimate(x[i])) * weight[i][:, None]).flatten()
        theirs = -velocity(x[i : i + 1])[0] + guidance_weight(level) * (error @ jacobian).unflatten(0, (HORIZON, ENTRIES))
        torch.testing.assert_close(-found[i], theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("delay", [0, 3])
def test_a_guided_flow_goes_on_from_the_plan(delay):
    """Smooth random paths, whose flow is known exactly: the plan's next action is a guess at its last, not a new path."""
    times = torch.arange(HORIZON, dtype=torch.float64)
    covariance = torch.exp(-((times[:, None] - times) ** 2) / 50) + 1e-4 * torch.eye(HORIZON, dtype=torch.float64)
    steps, paths = 10, 200

    def velocity(x, level):
        noisy = (1 - level) ** 2 * covariance + level**2 * torch.eye(HORIZON, dtype=torch.float64)
        return torch.einsum("ij,njk->nik", (level * torch.eye(HORIZON) - (1 - level) * covariance) @ noisy.inverse(), x)

    torch.manual_seed(0)
    draw = torch.distributions.MultivariateNormal(torch.zeros(HORIZON, dtype=torch.float64), covariance)
    plan = draw.sample((paths, ENTRIES)).transpose(1, 2)
    length = 8  # left of the plan; the rest is unknown to the policy
    weight = torch.zeros(paths, HORIZON, dtype=torch.float64)
    weight[:, :length] = torch.from_numpy(prefix_weights(length, delay)).double()
    plan[:, length:] = 0
    ends = {}
    for name in ("naive", "guided"):
        x = torch.randn(paths, HORIZON, ENTRIES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for i in range(steps):
            level = 1 - i / steps

            def at(x, level=level):
                return velocity(x, level)

            x = x - (guided(at, x, level, plan, weight) if name == "guided" else at(x)) / steps
        ends[name] = x
    seam = {name: float((x[:, delay] - plan[:, delay]).norm(dim=1).mean()) for name, x in ends.items()}
    assert seam["guided"] < 0.3 * seam["naive"]
    kept = keep(ends["guided"], plan, weight)
    assert torch.equal(kept[:, :delay], plan[:, :delay])
    assert torch.equal(kept[:, delay:], ends["guided"][:, delay:])
    # What is free at the end is still a path of the same size, not a copy of the plan.
    assert 0.7 < float(ends["guided"][:, -1].std()) < 1.3


@given(length=st.integers(0, 20), worlds=st.integers(1, 3))
def test_a_plan_is_read_at_the_length_of_a_chunk(length, worlds):
    rng = np.random.default_rng(length)
    actions = Actions([Entry("delta", "1", -1.0, 1.0)] * ENTRIES, None)
    shown = {PLAN: rng.normal(size=(worlds, length, ENTRIES)), PLAN_WEIGHT: rng.random((worlds, length))}
    plan, weight = read_plan(shown, HORIZON, torch.device("cpu"), actions)
    assert plan.shape == (worlds, HORIZON, ENTRIES)
    assert weight.shape == (worlds, HORIZON)
    both = min(length, HORIZON)
    np.testing.assert_allclose(plan[:, :both], shown[PLAN][:, :both], rtol=1e-6)
    np.testing.assert_allclose(weight[:, :both], shown[PLAN_WEIGHT][:, :both], rtol=1e-6)
    assert not weight[:, both:].any()
    assert read_plan({}, HORIZON, torch.device("cpu"), actions) == ()
