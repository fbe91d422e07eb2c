"""From config to server: what cannot be served."""

import pytest
from pointworld import PointPolicy

from vla.serving.run import on_device, warm_up
from vla.spec import UserError


def test_a_device_that_is_not_here_is_a_mistake():
    policy = PointPolicy()
    assert on_device(policy, "cpu") is policy
    with pytest.raises(UserError, match="cannot be moved to device 'cuda'"):
        on_device(policy, "cuda")


def test_a_policy_that_needs_more_than_its_spec_is_refused_before_anybody_asks():
    with pytest.raises(UserError, match="cannot act on an observation of its own spec"):
        warm_up(PointPolicy())  # looks for a white dot
