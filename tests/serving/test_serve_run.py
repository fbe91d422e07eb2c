"""From config to server: what cannot be served, and how it ends."""

import signal

import pytest
from pointworld import PointPolicy
from served import Client, command
from websockets.exceptions import ConnectionClosed

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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_server_and_its_clients_are_told(checkpoint, tmp_path, name):
    with (
        command(f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}") as (process, port),
        Client(port, open_timeout=300) as client,
    ):
        process.send_signal(signal.Signals[name])
        with pytest.raises(ConnectionClosed, match="1001"):
            client.socket.recv(timeout=300)
        assert process.wait(300) == 0
        assert "closing\n" in process.stdout.read()
