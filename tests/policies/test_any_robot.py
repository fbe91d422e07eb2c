"""Robots of other shapes than CALVIN's: any number of state and action entries, in any unit and range."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.nn.actions import Actions
from policies.nn.state import StateToken
from vla.checkpoint import build_policy, load_policy, save_checkpoint
from vla.spec import Entry, Spec, UserError

COMMAND = Entry("gripper", "1", -1.0, 1.0)
JOINTS = tuple(Entry(f"joint_{i}", "rad", -1.9, 1.9) for i in range(5)) + (Entry("gripper", "1", 0.0, 1.0),)
PIXELS = (Entry("x", "px", 0.0, 512.0), Entry("y", "px", 0.0, 512.0))
UNKNOWN = tuple(Entry(f"motor_{i}", "1") for i in range(14))
MIXED = (COMMAND, Entry("x", "m", -0.5, 0.5), Entry("y", "m", -0.5, 0.5))
ROBOTS = {"so101": JOINTS, "pusht": PIXELS, "aloha": UNKNOWN, "command first": MIXED, "commands alone": (COMMAND,)}
POLICIES = ("gr1_small", "gr1_small head@policy.head=flow", "f1_small")


def spec_of(action):
    state = tuple(Entry(f"position_{i}", "rad") for i in range(len(action) + 1))
    cameras = {"static": (64, 64)}
    return Spec(cameras=cameras, state=state, action=action, action_kind="joints", control_hz=30.0)


def largest(entry):
    return 8.0 if entry.high is None else entry.high


def statistics_of(spec, rng):
    size, reach = len(spec.state), np.array([largest(entry) for entry in spec.action])
    state = {"mean": rng.normal(size=size), "std": rng.uniform(0.2, 0.8, size=size)}
    return {"observation.state": state, "action": {"mean": 0.2 * reach, "std": rng.uniform(0.2, 0.4, len(reach)) * reach}}


def composed(policy):
    with initialize_config_module("conf", version_base="1.3"):
        name, *overrides = policy.split()
        return compose("train", overrides=[f"policy={name}", "policy.augment.swap=0", *overrides]).policy


def batch_of(policy, n, rng):
    """Windows that all show one picture and want one chunk, in the Spec's units."""
    spec, frames = policy.spec, (n, policy.window)
    action = np.array([0.5 * largest(entry) for entry in spec.action], np.float32)
    batch = {
        "observation.state": torch.zeros(*frames, len(spec.state)),
        "action": torch.from_numpy(action).expand(*frames, policy.horizon, -1),
        "action.mask": torch.ones(*frames, policy.horizon, dtype=torch.bool),
        "frame.mask": torch.ones(frames, dtype=torch.bool),
        "future.mask": torch.ones(frames, dtype=torch.bool),
        "task": ["move"] * n,
    }
    picture = torch.from_numpy(rng.integers(0, 256, (policy.size, policy.size, 3), np.uint8))
    for key in ("observation", "future"):
        batch[f"{key}.images.static"] = picture.expand(*frames, -1, -1, -1)
    return batch, action


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("robot", ROBOTS)
def test_a_policy_learns_a_robots_actions_in_its_units(name, robot, tmp_path):
    spec, config, rng = spec_of(ROBOTS[robot]), composed(name), np.random.default_rng(0)
    torch.manual_seed(0)
    policy = build_policy(config, spec, statistics_of(spec, rng))
    batch, wanted = batch_of(policy, 4, rng)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    for _ in range(40 if "gr1" in name and "flow" not in name else 4):
        optimizer.zero_grad()
        loss, parts = policy.loss(batch)
        loss.backward()
        optimizer.step()
    assert all(np.isfinite(float(part)) for part in parts.values())
    policy.eval()
    observation = {
        "observation.state": np.zeros((1, len(spec.state)), np.float32),
        "observation.images.static": batch["observation.images.static"][:1, 0].numpy(),
        "task": ["move"],
    }
    chunk, _ = policy.act(observation, policy.begin([0]))
    assert chunk.shape == (1, policy.horizon, len(spec.action))
    for i, entry in enumerate(spec.action):
        assert entry.low is None or (entry.low <= chunk[..., i].min() and chunk[..., i].max() <= entry.high)
        if entry == COMMAND:
            assert set(np.unique(chunk[..., i])) <= {-1.0, 1.0}
    if name == "gr1_small":
        reach = [0.2 * largest(entry) for entry in spec.action]
        assert (np.abs(chunk[0] - wanted) <= reach)[:, [e != COMMAND for e in spec.action]].all()
    save_checkpoint(tmp_path / "c", policy, config, {})
    again = load_policy(tmp_path / "c")
    np.testing.assert_array_equal(again.act(observation, again.begin([0]))[0], chunk)


entries = st.one_of(
    st.just(COMMAND),
    st.just(Entry("delta", "1", -1.0, 1.0)),
    st.just(Entry("free", "1")),
    st.builds(lambda low, span: Entry("joint", "rad", low, low + span), st.floats(-100, 100), st.floats(0.01, 100)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, min_size=1, max_size=6), st.booleans(), st.integers(0, 2**31))
def test_what_networks_see_leads_back_to_the_actions(spec, known, seed):
    rng = np.random.default_rng(seed)
    statistics = {"action": {"mean": rng.normal(size=len(spec)), "std": rng.uniform(0, 2, size=len(spec))}} if known else None
    actions = Actions(spec, statistics)
    low, high = (
        np.array([getattr(e, k) if getattr(e, k) is not None else s for e in spec]) for k, s in (("low", -9), ("high", 9))
    )
    real = rng.uniform(low, high, (3, len(spec))).astype(np.float32)
    normal = actions.normal(torch.from_numpy(real))
    np.testing.assert_allclose(actions.real(normal), real, atol=1e-3, rtol=1e-4)
    asis = [i for i, e in enumerate(spec) if (e.low, e.high) == (-1.0, 1.0)]
    np.testing.assert_array_equal(normal.numpy()[:, asis], real[:, asis])
    assert np.isfinite(normal.numpy()).all()
    np.testing.assert_array_equal(
        actions.kinds.joined(normal[:, actions.kinds.numbers], normal[:, actions.kinds.commands]), normal
    )


def test_calvins_actions_leave_nothing_to_save():
    arm = tuple(Entry(f"delta_{i}", "1", -1.0, 1.0) for i in range(6))
    assert Actions((*arm, COMMAND), None).state_dict() == {}
    assert set(Actions(JOINTS, None).state_dict()) == {"middle", "scale"}


def test_the_state_is_encoded_as_its_names_tell():
    world = [entry.name for entry in load_policy("checkpoints/gr1_small").spec.state]
    assert StateToken("auto", 8, [Entry(name, "1") for name in world]).encoding == "rotation6d"
    assert StateToken("auto", 8, [Entry(f"n{i}", "1") for i in range(15)]).encoding == "numbers"
    with pytest.raises(UserError, match="'polar' is unknown: use one of auto"):
        StateToken("polar", 8, [])
