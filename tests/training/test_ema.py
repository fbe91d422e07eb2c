"""The averaged weights."""

import pytest
import torch
from torch import nn

from vla.training.ema import EMA


def test_average_follows_its_formula_and_leaves_frozen_weights_alone():
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    ema = EMA(layer, decay=0.9)
    assert set(ema.average) == {"weight"}
    expected = layer.weight.item()
    for step in range(200):
        layer.weight.data.fill_(step)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_applied_swaps_and_brings_back_the_same_bits_even_after_an_error():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    ema = EMA(net, 0.9)
    for p in net.parameters():
        p.data.normal_()
    ema.update(100)
    raw = {name: value.clone() for name, value in net.state_dict().items()}
    with ema.applied():
        assert all(torch.equal(net.state_dict()[name], ema.average[name]) for name in raw)
        assert not torch.equal(net[0].weight, raw["0.weight"])
    assert all(torch.equal(net.state_dict()[name], raw[name]) for name in raw)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert all(torch.equal(net.state_dict()[name], raw[name]) for name in raw)
