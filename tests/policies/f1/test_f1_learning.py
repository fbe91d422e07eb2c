"""What the loss is made of, what it moves, and that a plan and actions can be learned."""

import pytest
import torch
from small_f1 import SPEC, VIDEO, batch, config, policy, video_batch

from vla.checkpoint import build_policy


@pytest.mark.parametrize("kind", ["vq", "vae"])
def test_it_learns_to_foresee_and_to_act(kind):
    torch.manual_seed(0)
    net = build_policy(config(kind, flow={"draws": 8, "steps": 10}), SPEC)
    for camera in net.spec.cameras:
        net.transform.pads[camera] = 0
    net.transform.brightness = net.transform.colour = 0.0
    data = batch(6)
    data["action"][..., 6] = data["action"][..., 6].sign()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2)
    told = []
    for _ in range(220):
        loss, parts = net.loss(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        told.append({k: float(v) for k, v in parts.items()})
    assert told[-1]["foresight_static"] < 0.3 * told[0]["foresight_static"]
    assert told[-1]["flow"] < 0.3 * told[0]["flow"]
    shown = {k: v[:, -1].numpy() for k, v in data.items() if k.startswith("observation.")} | {"task": data["task"]}
    actions, memory = net.act(shown, net.begin(range(6)))
    error = (torch.from_numpy(actions) - data["action"][:, -1])[..., :6].abs().mean()
    assert error < 0.25  # of actions that spread over -1..1
    assert (torch.from_numpy(actions)[..., 6] == data["action"][:, -1, :, 6]).float().mean() > 0.9
    future = net._tokens(net.transform.resize(data["future.images.static"])[:, -1], net.scales)
    if kind == "vq":
        assert (memory["plan"] == future).float().mean() > 0.8


def test_loss_ignores_what_is_masked():
    net = policy(flow={"draws": 2}).eval()
    data = batch(4)
    data["action.mask"][:, :, 2:] = False
    data["future.mask"][1] = False

    def loss(data):
        torch.manual_seed(0)
        return net.loss(data)[1]

    before = loss(data)
    changed = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    changed["future.images.static"][1] = 7
    assert torch.equal(loss(changed)["foresight_static"], before["foresight_static"])
    data["future.mask"][:] = data["action.mask"][:] = False
    assert set(float(v) for v in loss(data).values()) == {0.0}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"flow", "foresight_static"}),
        ({"foresight": {"scales": 0}}, {"flow"}),
        ({"foresight": {"own": 1.0, "top_k": 32}}, {"flow", "foresight_static"}),
        ({"history": 3}, {"flow", "foresight_static"}),
    ],
)
def test_every_trained_weight_gets_a_gradient_and_the_tokenizer_none(changes, parts):
    net = policy(**changes)
    loss, found = net.loss(batch(4, 3 if "history" in changes else 1))
    loss.backward()
    assert set(found) == parts
    idle = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert [n for n in idle if not n.endswith("mean")] == []
    assert all(p.grad is None for p in net.tokenizer.parameters())


@pytest.mark.parametrize("part", ["understanding", "generation", "action"])
def test_parts_that_are_not_trained_get_no_gradient(part):
    others = [p for p in ("understanding", "generation", "action") if p != part]
    net = policy(trained=others)
    net.loss(batch(2))[0].backward()
    assert all(p.grad is None for p in getattr(net.model, part).parameters())
    for other in others:
        assert all(p.grad is not None for p in getattr(net.model, other).parameters())


def test_own_foresight_takes_the_place_of_what_came():
    net, seen = policy(foresight={"own": 0.5}), []
    think = net.model.think
    net.model.think = lambda *tensors: seen.append(tensors[3]) or think(*tensors)
    torch.manual_seed(1)
    net.loss(batch(4))
    net.own = 0.0
    torch.manual_seed(1)
    net.loss(batch(4))
    assert torch.equal(seen[0][2:], seen[1][2:])
    assert not torch.equal(seen[0][:2], seen[1][:2])


def test_a_video_policy_is_the_same_without_hands():
    video, robot = policy(VIDEO), policy()
    names = {n for n, _ in video.named_parameters()}
    assert names < {n for n, _ in robot.named_parameters()}
    loss, parts = video.loss(video_batch(3))
    assert set(parts) == {"foresight_static"}
    loss.backward()
    own = {n for n, _ in robot.named_parameters()} - names
    assert all(n.startswith("model.action.") or ".wrist." in n for n in own)
