"""What the loss means: it can be driven down, foresight targets are as published, video alone is enough for pre-training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_gr1 import FLOW, SENTENCES, SPEC, VIDEO, batch, observation, policy, video_batch

from policies.gr1 import foresight
from policies.gr1.heads import Flow
from policies.nn.actions import Kinds
from policies.nn.images import SWAP_MARGIN, Transform, donors, draw_swap, normalise, shift_pixels, to_pixels
from vla.spec import UserError


def fit(net, data: dict, steps: int, rate: float = 1e-2) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(net.parameters(), rate)
    history = []
    for _ in range(steps):
        loss, parts = net(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({k: float(v) for k, v in parts.items()})
    return history


def test_a_batch_can_be_learned_by_heart_and_acted_out():
    net, data = policy(gripper_rule="threshold").eval(), batch(4)
    data["action"][..., 6] = data["action"][..., 6].sign()
    history = fit(net, data, 150)
    assert history[-1]["arm"] < 0.02 < history[0]["arm"]
    assert history[-1]["gripper"] < 0.01
    assert history[-1]["foresight_static"] < 0.8 * history[0]["foresight_static"]
    seen = {k: v[:, 0].numpy() for k, v in data.items() if k.startswith("observation")} | {"task": data["task"]}
    actions, _ = net.act(seen, net.begin(range(4)))
    assert np.abs(actions[..., :6] - data["action"][:, 0, :, :6].numpy()).mean() < 0.05
    np.testing.assert_array_equal(actions[..., 6], data["action"][:, 0, :, 6].numpy())


def test_the_instruction_alone_can_decide_the_action():
    net = policy(gripper_rule="threshold").eval()
    data = {k: v[:1].expand(3, *v.shape[1:]) if isinstance(v, torch.Tensor) else v for k, v in batch(3).items()}
    data["action"] = torch.tensor([-0.8, 0.0, 0.8])[:, None, None, None].expand(3, 1, 4, 7)
    fit(net, data, 60)
    seen = {k: v[:, 0].numpy() for k, v in data.items() if k.startswith("observation")} | {"task": list(SENTENCES)}
    actions, _ = net.act(seen, net.begin(range(3)))
    np.testing.assert_allclose(actions[:, 0, 0], [-0.8, 0, 0.8], atol=0.15)


def test_flow_samples_both_modes_where_regression_would_average():
    torch.manual_seed(0)
    head = Flow(Kinds(SPEC.action), 4, 1, 1, hidden=64, blocks=2, draws=4, steps=4)
    features = torch.ones(64, 1, 4)
    actions = (torch.arange(64) % 2 * 2 - 1.0)[:, None, None].expand(64, 1, 7)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(300):
        head.loss(features, actions, torch.ones(64, 1, dtype=torch.bool))["flow"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        sampled = head.act(torch.ones(200, 1, 4), torch.randn(200, 1, 7))[:, 0, 0]
    assert 0.3 < (sampled > 0).float().mean() < 0.7
    assert (sampled.abs() > 0.6).float().mean() > 0.8


def test_flow_and_history_train_with_every_switch_on():
    net = policy(head=FLOW, history=2, act_sees_foresight=True, foresight={"fraction": 0.5}, dropout=0.1, supervise="last")
    history = fit(net.train(), batch(6, 2), 30)
    assert history[-1]["flow"] < history[0]["flow"]


def test_pretraining_on_video_alone():
    net = policy(VIDEO)
    history = fit(net, video_batch(6), 40)
    assert set(history[0]) == {"foresight_static", "foresight_static_levels"}
    assert history[-1]["foresight_static"] < 0.95 * history[0]["foresight_static"]
    assert all(p.grad is None or p.requires_grad for p in net.parameters())
    assert not [n for n, _ in net.named_parameters() if "wrist" in n or "state" in n or "act_query" in n or "head" in n]


@pytest.mark.parametrize("rows", [1, 4])
def test_foresight_on_a_part_of_the_batch_gives_the_same_action_loss(rows):
    net, data = policy().eval(), batch(4)
    net.fraction = 1.0
    _, whole = net.loss(data)
    net.fraction = rows / 4
    _, part = net.loss(data)
    torch.testing.assert_close(whole["arm"], part["arm"], atol=1e-6, rtol=0)
    assert (rows == 4) == bool(torch.equal(whole["foresight_static"], part["foresight_static"]))


def test_true_pixels_and_level_changes_imagine_the_future_exactly():
    now, later = torch.randn(3, 16, 16, 3), 0.3 + 1.7 * torch.randn(3, 16, 16, 3)
    perfect = torch.cat([foresight.targets(later, 8), foresight.level_changes(later, now, 8)], dim=-1)
    torch.testing.assert_close(foresight.imagine(perfect, now, 8), later, atol=1e-4, rtol=0)
    without = foresight.imagine(foresight.targets(later, 8), now, 8)
    assert (without - later).square().mean() > 0.05


def test_patches_are_normalised_as_published():
    images = torch.rand(2, 16, 16, 3)
    ours = foresight.targets(images, 8).numpy()
    patch = images[1, 8:, :8].reshape(-1).double().numpy()  # second row, first column
    published = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(ours[1, 2], published, atol=1e-5)
    torch.testing.assert_close(foresight.unpatchify(foresight.patchify(images, 8), 8), images)
    torch.testing.assert_close(foresight.imagine(torch.from_numpy(ours), images, 8), images, atol=1e-5, rtol=1e-5)


def test_transform_shifts_a_window_as_one_and_repeats_the_border():
    images = torch.arange(5 * 5 * 3, dtype=torch.uint8).view(1, 1, 5, 5, 3).repeat(1, 2, 1, 1, 1)
    moved = shift_pixels(images, torch.tensor([[1, -2]]))
    assert torch.equal(moved[0, 0], moved[0, 1])
    assert torch.equal(moved[0, 0, 1:, :3], images[0, 0, :-1, 2:])
    assert torch.equal(moved[0, 0, 0], moved[0, 0, 1])
    assert torch.equal(moved[0, 0, :, 3], moved[0, 0, :, 4])
    assert torch.equal(to_pixels(normalise(images)), images)


def test_transform_draws_one_change_per_window_and_none_when_acting():
    torch.manual_seed(0)
    transform = Transform(8, {"static": 2}, brightness=0.1, colour=0.1, mode="area")
    images = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8).repeat(32, 2, 1, 1, 1)
    changed = transform(images, transform.jitter("static", 32, images.device))
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert len({float(x.sum()) for x in changed[:, 0]}) == 32
    plain = transform(images)
    assert torch.equal(plain[0], plain[31])
    torch.testing.assert_close(to_pixels(plain)[0, 0, 0, 0].float(), images[0, 0, :2, :2].float().mean((0, 1)).round())


@given(st.integers(0, 2**31 - 1), st.integers(1, 12))
def test_swapped_parts_keep_off_the_hands_paths_in_both_pictures(seed, points):
    generator = torch.manual_seed(seed)
    path = 1.4 * torch.rand(16, points, 2, generator=generator) - 0.2
    swap = draw_swap(path, names(16, 4, generator), 1.0, 32)
    cells = (torch.arange(32) + 0.5) / 32
    near = (path[:, :, None, None, 0] - cells).abs() < SWAP_MARGIN
    near = (near & ((path[:, :, None, None, 1] - cells[:, None]).abs() < SWAP_MARGIN)).any(1)
    assert not (swap.mask & (near | near[swap.donor])).any()


@given(st.integers(0, 2**31 - 1), st.integers(1, 40))
def test_donors_do_the_same_task(seed, windows):
    generator = torch.manual_seed(seed)
    tasks = names(windows, 8, generator)
    donor = donors(tasks).tolist()
    assert [tasks[i] for i in donor] == tasks
    assert sorted(donor) == list(range(windows))
    assert [i == place for place, i in enumerate(donor)] == [tasks.count(task) == 1 for task in tasks]


def names(windows, tasks, generator):
    return [f"task {i}" for i in torch.randint(0, tasks, (windows,), generator=generator).tolist()]


def test_swapped_parts_show_the_donor_and_only_they():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 2, 16, 16, 3), dtype=torch.uint8)
    path, tasks = torch.full((8, 1, 2), 0.1), ["open"] * 8
    swap = draw_swap(path, tasks, 1.0, 16)
    assert swap.mask.any((1, 2)).all()
    mixed = swap(images, images[:, -1])
    for i in range(8):
        for step in range(2):
            expected = torch.where(swap.mask[i, :, :, None], images[swap.donor[i], -1], images[i, step])
            assert torch.equal(mixed[i, step], expected)
    assert torch.equal(swap(images[:3], images[:, -1]), mixed[:3])
    assert not draw_swap(path, tasks, 0.0, 16).mask.any()


def test_training_is_jittered_and_evaluation_is_not():
    net, data = policy(), batch(4)
    assert not torch.equal(net.train().loss(data)[0], net.train().loss(data)[0])
    assert torch.equal(net.eval().loss(data)[0], net.eval().loss(data)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_queries": 3}, "not a multiple of action_queries 3"),
        ({"state": "euler"}, "state encoding 'euler' is unknown"),
        ({"gripper_rule": "guess"}, "gripper_rule 'guess' is unknown"),
        ({"supervise": "some"}, "supervise 'some' is unknown"),
        ({"resize": "nearest"}, "resize 'nearest' is unknown"),
        ({"vision": {"name": "vgg"}}, "vision encoder 'vgg' is unknown"),
        ({"text": {"name": "bert"}}, "text encoder 'bert' is unknown"),
        ({"head": {"name": "bins"}}, "action head 'bins' is unknown"),
        ({"foresight": {"decoder": {"patch": 4, "skip": True}}}, "decoder.skip"),
        ({"widht": 3}, "does not fit"),
    ],
)
def test_bad_config_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        policy(**changes)


def test_a_spec_that_does_not_fit_is_one_sentence():
    with pytest.raises(UserError, match=r"cameras \['static', 'wrist'\] are not among \['front'\].*policy.cameras.front"):
        policy(replace(SPEC, cameras={"front": (8, 8)}))
    with pytest.raises(UserError, match=r"policy\.state=raw reads CALVIN's 15 entries but the state has 6"):
        policy(replace(SPEC, state=SPEC.state[:6]), state="raw")


def test_observation_of_any_size_meets_the_network():
    net = policy()
    large = observation(2)
    large["observation.images.static"] = large["observation.images.static"].repeat(5, 1).repeat(5, 2)
    small = observation(2)
    np.testing.assert_allclose(
        net.act(large, net.begin([0, 1]))[0][..., :6], net.act(small, net.begin([0, 1]))[0][..., :6], atol=0.05
    )
