"""A policy at the other end of a socket is the policy itself, and every way in which the socket can fail is one sentence."""

import gc
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import msgpack
import numpy as np
import pytest
from pointworld import SIZE, Benchmark, ContinuingPolicy, HoldingWorld, PointPolicy, PointWorld, point_spec
from served import array, plain, serving
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from policies.remote import Remote
from vla.evaluation.long_horizon import evaluate
from vla.executor import RealTime, RecedingHorizon
from vla.policy import Imagining, Policy
from vla.spec import Spec, UserError

OPENPI = {
    "names": {
        "observation.images.static": "observation/image",
        "observation.images.wrist": "observation/wrist_image",
        "observation.state": "observation/state",
        "task": "prompt",
    },
    "size": 224,
}


def remote(port: int, spec: Spec | None = None, **options) -> Remote:
    return Remote(spec, url=f"ws://127.0.0.1:{port}", openpi=OPENPI, **options)


def seen(count: int) -> dict:
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    images[np.arange(count), 5, 7] = 255
    return {
        "observation.images.static": images,
        "observation.images.wrist": images,
        "observation.state": np.zeros((count, 2), np.float32),
        "task": ["go to red", "go to blue", "go to white"][:count],
    }


@pytest.mark.parametrize("history", [False, True])
def test_it_meets_the_contract_and_gives_the_same_actions(history):
    policy = PointPolicy(history=history)
    with serving(policy) as port:
        there = remote(port, policy.spec)
        assert isinstance(there, Policy)
        assert isinstance(there, Imagining)
        assert (there.spec, there.history, there.foresight_steps) == (policy.spec, history, 3)
        here, away = policy.begin([4, 5, 6]), there.begin([4, 5, 6])
        for _ in range(3):
            want, here = policy.act(seen(3), here)
            chunk, away = there.act(seen(3), away)
            np.testing.assert_array_equal(chunk, want)
            here, away = policy.remember(seen(3), here), there.remember(seen(3), away)
        for camera, frames in policy.foresee(here).items():
            np.testing.assert_array_equal(there.foresee(away)[camera], frames)
        assert [set(t) >= {"wait_ms", "infer_ms", "batch", "round_trip_ms"} for t in there.timing] == [True] * 3
        there.close()


def test_a_policy_that_does_not_imagine_does_not_so_from_afar():
    class Blind(PointPolicy):
        foresee = property()  # type: ignore[assignment]

    with serving(Blind()) as port:
        assert not isinstance(remote(port), Imagining)


def play(policy, world=PointWorld, executor=RecedingHorizon, delay_s=0.0) -> list:
    rules = (Benchmark(), range(6), executor(2), "validation", 0)
    return sorted(
        (r["chain"], r["solved"], sum(a["steps"] for a in r["attempts"]))
        for r in evaluate(world(3), policy, *rules, delay_s=delay_s)
    )


def test_plans_are_continued_through_the_socket():
    settings = (HoldingWorld, RealTime, 0.1)
    policy = ContinuingPolicy(8)
    with serving(policy) as port:
        there = remote(port)
        assert there.continues
        assert play(there, *settings) == play(policy, *settings) != play(policy, HoldingWorld, RecedingHorizon, 0.1)
        there.close()
    with serving(PointPolicy()) as port, pytest.raises(UserError, match="Remote cannot"):
        play(remote(port), *settings)


def test_a_benchmark_scores_the_same_through_the_socket():
    policy = PointPolicy()
    with serving(policy) as port:
        there = remote(port)
        assert play(there) == play(policy)
        gc.collect()
        assert 3 <= len(there._free) <= 6  # places were used again and again, not opened anew for each instruction
        there.close()


def test_memory_that_was_used_is_not_used_again():
    with serving(PointPolicy()) as port:
        there = remote(port)
        memory = there.begin([1])
        there.act(seen(1), memory)
        with pytest.raises(UserError, match="memory of step 0 was used again"):
            there.act(seen(1), memory)


def test_what_the_server_says_is_passed_on_and_the_world_goes_on():
    policy = PointPolicy()
    with serving(policy) as port:
        there, memory = remote(port), None
        memory = there.begin([1])
        with pytest.raises(UserError, match="says: task is"):
            there.act({**seen(1), "task": ["a" * 2000]}, memory)
        chunk, _ = there.act(seen(1), memory)
        np.testing.assert_array_equal(chunk, policy.act(seen(1), policy.begin([1]))[0])


def test_a_server_for_another_robot_refuses_with_the_reason():
    spec = point_spec(cameras=False)
    with serving(PointPolicy()) as port, pytest.raises(UserError, match="needs camera 'static'"):
        remote(port, spec)


def test_a_token_is_sent_and_its_lack_told():
    with serving(PointPolicy(), token="a-long-enough-secret") as port:
        with pytest.raises(UserError, match=r"401 Unauthorized: give policy\.token"):
            remote(port)
        remote(port, token="a-long-enough-secret").close()


def test_no_server_no_websocket_no_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=r"did not answer within 0.2 s"):
            remote(port, timeout_s=0.2)
    with pytest.raises(UserError, match="cannot be reached"):
        remote(port)
    with pytest.raises(UserError, match="is not a websocket's"):
        Remote(url="http://127.0.0.1", openpi=OPENPI)


def test_a_server_that_dies_is_told_and_the_next_begin_finds_a_new_one():
    policy = PointPolicy()
    with serving(policy) as port:
        there = remote(port)
        memory = there.begin([1])
        _, memory = there.act(seen(1), memory)
    with pytest.raises(UserError, match=r"connection to .* is lost"):
        there.act(seen(1), memory)
    with pytest.raises(UserError, match="cannot be reached"):
        there.begin([1])
    with serving(policy, port=port):
        chunk, _ = there.act(seen(1), there.begin([1]))
        np.testing.assert_array_equal(chunk, policy.act(seen(1), policy.begin([1]))[0])


def test_a_server_that_stops_reading_is_given_up_in_time():
    """It shakes hands, says what it is, and then never reads, and the pictures are larger than all buffers on the way."""

    def deaf():
        taken, _ = listener.accept()
        protocol = ServerProtocol()
        while not (requests := protocol.events_received()):
            protocol.receive_data(taken.recv(4096))
        protocol.send_response(protocol.accept(requests[0]))
        protocol.send_binary(msgpack.packb({"model": "deaf"}))
        taken.sendall(b"".join(protocol.data_to_send()))
        sockets.append(taken)

    sockets = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=deaf)
        thread.start()
        there = remote(listener.getsockname()[1], timeout_s=0.5)
        thread.join()
        large = np.zeros((1, 4000, 2000, 3), np.uint8)
        memory = there.begin([1])
        with pytest.raises(UserError, match=r"did not answer within 0.5 s"):
            there.act({**seen(1), "observation.images.static": large}, memory)
        assert not memory["place"][0].connection.usable
        sockets[0].close()


@contextmanager
def openpi_server(answer):
    """As openpi's serve_policy does it: metadata first, then an answer for every message, or a traceback and the end."""
    got = []

    def talk(connection):
        connection.send(msgpack.packb({"model": "pi0"}))
        for frame in connection:
            got.append(plain_message(frame))
            reply = answer(got[-1])
            connection.send(reply if isinstance(reply, str) else msgpack.packb(reply))
            if isinstance(reply, str):
                connection.close(1011, "Internal server error.")

    with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1], got
        server.shutdown()
    thread.join()


def plain_message(frame: bytes) -> dict:
    return {name: plain(value) for name, value in msgpack.unpackb(frame).items()}


@pytest.mark.parametrize("spec", [None, point_spec()])
def test_an_openpi_server_is_asked_in_its_words(spec):
    actions = np.arange(14, dtype=np.float64).reshape(2, 7)
    with openpi_server(lambda _: {"actions": array(actions), "server_timing": {"infer_ms": 3.0}}) as (port, got):
        there = remote(port, spec)
        assert not isinstance(there, Imagining)
        assert dict(there.spec.cameras) == {"static": (224, 224), "wrist": (224, 224)}
        assert not there.history
        chunk, memory = there.act(seen(2), there.begin([1, 2]))
        np.testing.assert_array_equal(chunk, np.float32([actions, actions]))
        there.act(seen(2), memory)
        assert there.timing[0]["infer_ms"] == 3.0
        assert len(got) == 4
        assert set(got[0]) == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
        np.testing.assert_array_equal(got[0]["observation/image"], seen(1)["observation.images.static"][0])
        assert {message["prompt"] for message in got} == {"go to red", "go to blue"}
        there.close()


def test_an_openpi_servers_mistakes_are_told():
    with openpi_server(lambda _: "Traceback: KeyError 'x'") as (port, _):
        there = remote(port)
        with pytest.raises(UserError, match="says: Traceback"):
            there.act(seen(1), there.begin([1]))
        while there._free[-1:] and there._free[-1].usable:
            time.sleep(0.01)
        there.close()
    with openpi_server(lambda _: {"actions": array(np.zeros((2, 32)))}) as (port, _):
        there = remote(port, point_spec())
        with pytest.raises(UserError, match=r"shape \(2, 32\) but \(horizon, 7\)"):
            there.act(seen(1), there.begin([1]))


def test_it_needs_no_torch():
    policy = PointPolicy()
    want = policy.act(seen(1), policy.begin([3]))[0]
    code = """
import sys
for name in ("torch", "lerobot", "gymnasium", "mujoco", "hydra", "zarr"):
    sys.modules[name] = None
import numpy as np
from policies.remote import Remote
policy = Remote(url=sys.argv[1], openpi={})
image = np.zeros((1, 16, 16, 3), np.uint8)
image[0, 5, 7] = 255
observation = {"observation.images.static": image, "observation.images.wrist": image,
               "observation.state": np.zeros((1, 2), np.float32), "task": ["go to red"]}
print(policy.act(observation, policy.begin([3]))[0].sum())
"""
    with serving(policy) as port:
        out = subprocess.run([sys.executable, "-c", code, f"ws://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    assert float(out.stdout) == pytest.approx(float(want.sum()))
