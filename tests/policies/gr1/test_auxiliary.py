"""Readouts that are trained and never acted on: progress, objects."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_gr1 import SPEC, batch, config, observation, policy

from vla.checkpoint import build_policy, load_policy, save_checkpoint
from vla.spec import Entry, UserError

SEEN = replace(SPEC, environment_state=tuple(Entry(f"e{i}", "1") for i in range(5)))
STATISTICS = {
    "observation.state": {"mean": np.zeros(15), "std": np.ones(15)},
    "observation.environment_state": {"mean": np.full(5, 3.0), "std": np.full(5, 2.0)},
}


def helped(spec=SEEN, statistics=STATISTICS, **auxiliary):
    torch.manual_seed(0)
    return build_policy(config(auxiliary=auxiliary or {"progress": True, "objects": 5}), spec, statistics)


def labelled(b: int, t: int = 1) -> dict:
    data = batch(b, t)
    data["observation.environment_state"] = 3 + 2 * torch.randn(b, t, 5, generator=torch.Generator().manual_seed(1))
    data["progress"] = torch.linspace(0, 1, b)[:, None].expand(b, t).clone()
    data["progress.mask"] = torch.ones(b, t, dtype=torch.bool)
    return data


def test_both_can_be_learned_by_heart():
    net, data = helped().eval(), labelled(4)
    optimizer, parts = torch.optim.AdamW(net.parameters(), 1e-2), []
    for _ in range(150):
        loss, now = net(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        parts.append(now)
    for name in ("progress", "objects"):
        assert parts[-1][name] < 0.1 * parts[0][name]


def test_what_is_unknown_does_not_count():
    net, data = helped().eval(), labelled(4)
    data["progress.mask"][2:] = False
    before = net(data)[1]
    data["progress"][2:] = 0.123
    assert net(data)[1]["progress"] == before["progress"]
    data["progress.mask"][:] = False
    assert net(data)[1]["progress"] == 0.0


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_objects_count_where_pictures_are_whole(swap):
    net, data = helped().train(), labelled(4)
    net.swap = swap
    data |= {f"path.{c}": torch.full((4, 12, 2), -9.0) for c in SPEC.cameras}  # nothing is kept: all pictures are swapped
    data["task.name"] = ["a"] * 4
    assert (net(data)[1]["objects"] == 0) == bool(swap)


def test_switched_off_there_is_no_readout_and_acting_never_looks(tmp_path):
    assert helped(progress=False, objects=0).auxiliary is None
    assert not policy().environment_state
    net = helped().eval()
    folder = save_checkpoint(tmp_path / "helped", net, config(auxiliary={"progress": True, "objects": 5}), {})
    loaded, seen = load_policy(folder), observation(2)
    assert loaded.spec.environment_state == ()
    assert torch.equal(loaded.auxiliary.mean, torch.full((5,), 3.0))
    actions = [p.act(seen, p.begin([0, 1]))[0] for p in (net, loaded)]
    np.testing.assert_array_equal(*actions)


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match=r"objects is 4 but the data's environment state has 5 entries"):
        helped(objects=4)
    with pytest.raises(UserError, match=r"objects is 5 but the data's environment state has 0 entries"):
        helped(spec=SPEC)
    with pytest.raises(UserError, match=r"auxiliary\.progress needs 'progress'"):
        helped()(batch(2))
