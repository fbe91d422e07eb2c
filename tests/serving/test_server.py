"""One policy, many clients: whose memory is whose, who may come in, what is refused, and what happens to the others then."""

import asyncio
import logging
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import numpy as np
import pytest
from pointworld import SIZE, ContinuingPolicy, PointPolicy
from served import Client, array, plain, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vla.serving.server import Server, is_loopback
from vla.spec import Entry, Spec, UserError
from vla.wire import PROTOCOL, VERSION

TOKEN = "a-long-enough-secret"


def picture(row: int, column: int) -> np.ndarray:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[row, column] = 255
    return image


def seen(row: int = 8, column: int = 8, task: str = "go to red", **more):
    """An observation as a client sends it."""
    image = array(picture(row, column))
    return {
        "observation.images.static": image,
        "observation.images.wrist": image,
        "observation.state": array(np.zeros(2, np.float32)),
        "task": task,
        **more,
    }


def local(policy, seed: int, *observations):
    """The chunks that the policy gives in this process."""
    memory, chunks = policy.begin([seed]), []
    for o in observations:
        rows = {name: [v] if isinstance(v, str) else plain(v)[None] for name, v in o.items() if name not in ("reset", "seed")}
        chunk, memory = policy.act(rows, memory)
        chunks.append(chunk[0])
    return chunks


def test_metadata_comes_first_and_says_what_is_served():
    policy = PointPolicy(history=True)
    with serving(policy, title="points") as port, Client(port) as client:
        assert client.metadata["protocol"] == PROTOCOL
        assert client.metadata["version"] == VERSION
        assert Spec.from_dict(client.metadata["spec"]) == policy.spec
        assert client.metadata["history"] is True
        assert client.metadata["foresight_steps"] == 3
        assert client.metadata["policy"] == "points"


def test_actions_are_those_of_the_policy_and_memory_is_kept_and_reset():
    policy = PointPolicy()
    steps = [seen(3, 3), seen(4, 3), seen(5, 3)]
    want = local(policy, 7, *steps)
    with serving(policy) as port, Client(port) as client:
        for again in range(2):
            steps[0].update(reset=True, seed=7)
            for step, chunk in zip(steps, want, strict=True):
                reply = client.ask(step)
                np.testing.assert_array_equal(reply["actions"], chunk)
                assert reply["actions"].dtype == np.float32
                assert reply["server_timing"]["infer_ms"] > 0
                assert reply["server_timing"]["wait_ms"] >= 0
                assert ("prev_total_ms" in reply["server_timing"]) == bool(again or step is not steps[0])


def test_a_plan_is_checked_before_a_policy_sees_it():
    policy, zeros = ContinuingPolicy(6), np.zeros((4, 7), np.float32)
    with serving(policy) as port, Client(port) as client, serving(PointPolicy()) as other, Client(other) as deaf:
        assert client.metadata["continues"] is True
        assert deaf.metadata["continues"] is False
        shown = {"plan": array(zeros + 0.5), "plan.weight": array(np.array([1, 1, 0.5, 0], np.float32))}
        chunk = client.ask(seen(reset=True, seed=5, **shown))["actions"]
        free = local(policy, 5, seen())[0]
        np.testing.assert_allclose(chunk, [*zeros[:2] + 0.5, (free[2] + 0.5) / 2, *free[3:]], atol=1e-6)
        np.testing.assert_array_equal(
            deaf.ask(seen(reset=True, seed=5, **shown))["actions"], local(PointPolicy(), 5, seen())[0]
        )
        for bad, words in (
            ({"plan": array(zeros[:, :6])}, r"plan is an array of float32 \(4, 6\): send at most 1000 actions of 7"),
            ({"plan": array(np.zeros((1001, 7)))}, "send at most 1000"),
            ({"plan": array(zeros * np.nan)}, "finite"),
            ({"plan": [1, 2]}, "send at most 1000"),
            ({"plan.weight": array(np.ones(3))}, "send 4 finite numbers"),
            ({"plan.weight": array(np.full(4, 1.5))}, "from 1.5 to 1.5: send numbers from 0 to 1"),
        ):
            assert re.search(words, client.ask(seen(**{**shown, **bad})))
        message = seen(**shown)
        del message["plan.weight"]
        assert "no 'plan.weight'" in client.ask(message)


def test_each_connection_has_a_memory_of_its_own():
    policy = PointPolicy()
    with serving(policy) as port, Client(port) as a, Client(port) as b:
        a.ask(seen(reset=True, seed=5))
        np.testing.assert_array_equal(b.ask(seen(reset=True, seed=5))["actions"], local(policy, 5, seen())[0])
        second = local(policy, 5, seen(), seen())[1]
        np.testing.assert_array_equal(a.ask(seen())["actions"], second)
        np.testing.assert_array_equal(b.ask(seen())["actions"], second)


def test_remember_takes_in_without_acting_and_foresee_shows():
    class Counting(PointPolicy):
        def foresee(self, memory):
            return {c: np.full((len(memory["seen"]), 2, 2, 3), memory["seen"][0], np.uint8) for c in self.spec.cameras}

    with serving(Counting(history=True)) as port, Client(port) as client:
        assert "before any observation" in client.ask({"foresee": True})
        for _ in range(3):
            assert "actions" not in client.ask(seen(remember=True))
        reply = client.ask({"foresee": True})
        assert set(reply["imagined"]) == {"static", "wrist"}
        assert (reply["imagined"]["static"] == 3).all()


class Slow(PointPolicy):
    """Takes its time, so that others come to wait."""

    def act(self, observation, memory):
        time.sleep(0.02)
        return super().act(observation, memory)


def test_those_who_ask_together_are_answered_in_one_batch_and_as_if_alone():
    policy = Slow()
    want = [local(policy, k, *[seen(k, k)] * 5) for k in range(6)]
    policy.batches.clear()

    def drive(k: int) -> list[int]:
        with Client(port) as client:
            sizes = []
            for i in range(5):
                reply = client.ask(seen(k, k, **({"reset": True, "seed": k} if i == 0 else {})))
                np.testing.assert_array_equal(reply["actions"], want[k][i])
                sizes.append(reply["server_timing"]["batch"])
            return sizes

    with serving(policy, gather_ms=200) as port, ThreadPoolExecutor(6) as pool:
        sizes = [size for sizes in pool.map(drive, range(6)) for size in sizes]
    assert max(sizes) > 1
    assert sorted(policy.batches) == sorted(size for size in set(sizes) for _ in range(sizes.count(size) // size))


def test_pictures_of_different_sizes_meet_in_one_batch():
    class Sizes(Slow):
        def act(self, observation, memory):
            chunk, memory = super().act({**observation, "observation.images.static": np.zeros((1, 16, 16, 3)) + 1}, memory)
            return chunk * 0 + observation["observation.images.static"].shape[1] / 100, memory

    def drive(side: int) -> float:
        with Client(port) as client:
            image = array(np.zeros((side, side, 3), np.uint8))
            message = {**seen(), "observation.images.static": image, "observation.images.wrist": image}
            return float(client.ask(message)["actions"][0, 0])

    with serving(Sizes(), gather_ms=100) as port, ThreadPoolExecutor(3) as pool:
        assert list(pool.map(drive, (8, 16, 32))) == pytest.approx([0.08, 0.16, 0.32])


class Choking(Slow):
    """Cannot bear one sentence, and cannot say why."""

    def act(self, observation, memory):
        time.sleep(0.02)
        if "go to poison" in observation["task"]:
            raise RuntimeError("choked")
        return super().act(observation, memory)


def test_a_request_that_fails_fails_alone():
    want = local(PointPolicy(), 0, seen())[0]

    def drive(task: str):
        with Client(port) as client:
            first = client.ask(seen(task=task))
            return first, client.ask(seen())

    with serving(Choking(), gather_ms=100) as port, ThreadPoolExecutor(4) as pool:
        bad, *good = pool.map(drive, ["go to poison", "go to red", "go to red", "go to red"])
    assert bad[0] == "the policy failed (RuntimeError: choked)."
    np.testing.assert_array_equal(bad[1]["actions"], want)  # its memory is as if it had not asked
    for reply, _ in good:
        np.testing.assert_array_equal(reply["actions"], want)


def test_an_action_that_is_not_finite_is_not_sent():
    class Broken(PointPolicy):
        def act(self, observation, memory):
            chunk, memory = super().act(observation, memory)
            chunk[:, 1, 2] = np.nan
            return chunk, memory

    with serving(Broken()) as port, Client(port) as client:
        assert "not finite in entry 2 (dz)" in client.ask(seen())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observation.images.static": None}, "observation.images.static is None: send an RGB image"),
        ({"observation.images.static": array(np.zeros((4, 4), np.uint8))}, "array of uint8 (4, 4)"),
        ({"observation.images.static": array(np.zeros((4, 4, 4), np.uint8))}, "array of uint8 (4, 4, 4)"),
        ({"observation.images.static": array(np.zeros((0, 4, 3), np.uint8))}, "array of uint8 (0, 4, 3)"),
        ({"observation.images.static": array(np.zeros((4, 4, 3), np.float32))}, "array of float32 (4, 4, 3)"),
        ({"observation.state": array(np.zeros(3))}, "observation.state is an array of float64 (3,): send 2 finite numbers"),
        ({"observation.state": [1.0, float("nan")]}, "observation.state is [1.0, nan]"),
        ({"observation.state": [1e300, 0.0]}, "send 2 finite numbers"),
        ({"observation.state": ["a", "b"]}, "send 2 finite numbers"),
        ({"observation.state": [[1], [1, 2]]}, "send 2 finite numbers"),
        ({"observation.state": {"a": 1}}, "send 2 finite numbers"),
        ({"task": 5}, "task is 5: send the instruction"),
        ({"task": "a" * 1001}, "at most 1000 characters"),
        ({"reset": True, "seed": -1}, "seed is -1"),
        ({"reset": True, "seed": "x"}, "seed is 'x'"),
    ],
)
def test_a_bad_observation_is_answered_with_a_sentence_and_the_talk_goes_on(change, says):
    with serving(PointPolicy()) as port, Client(port) as client:
        answer = client.ask(seen(**change))
        assert says in answer
        assert len(answer) < 400
        assert client.ask(seen())["actions"].shape == (4, 7)


@pytest.mark.parametrize("name", ["observation.images.wrist", "observation.state", "task"])
def test_what_lacks_is_named(name):
    with serving(PointPolicy()) as port, Client(port) as client:
        answer = client.ask({k: v for k, v in seen().items() if k != name})
        assert f"no {name!r}" in answer


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        ({"version": 2}, "speaks version 2 of the protocol but the server 1"),
        ("what", "speaks version 'what'"),
        ({"version": VERSION, "spec": "x"}, "cannot be read"),
        ({"version": VERSION, "spec": {"schema": 1, "state": [{"name": 1}]}}, "cannot be read"),
        ({"version": VERSION, "spec": {"schema": 9}}, "spec schema is 9"),
        ({"version": VERSION, "spec": Spec().to_dict()}, "needs camera 'static'"),
    ],
)
def test_who_does_not_fit_is_told_why_and_sent_away(hello, says):
    with serving(PointPolicy()) as port, Client(port) as client:
        assert says in client.ask({"hello": hello})
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1008
        assert says[:60] in closed.value.rcvd.reason


def test_a_spec_that_differs_in_one_entry_is_refused_and_an_equal_one_is_welcome():
    spec = PointPolicy().spec
    other = Spec.from_dict({**spec.to_dict(), "state": [{"name": "x", "unit": "cm"}, {"name": "y", "unit": "m"}]})
    assert other.state[0] == Entry("x", "cm")
    with serving(PointPolicy()) as port:
        with Client(port) as client:
            assert client.ask({"hello": {"version": VERSION, "spec": spec.to_dict()}}) == {"ready": True}
            assert "actions" in client.ask(seen())
        with Client(port) as client:
            assert "unit='cm'" in client.ask({"hello": {"version": VERSION, "spec": other.to_dict()}})


def test_a_message_above_the_limit_ends_the_talk_before_it_is_read():
    with serving(PointPolicy(), max_megabytes=0.1) as port, Client(port) as client:
        client.send(bytes(100_001))
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1009


def test_a_token_is_demanded_from_all_but_health_checks():
    with serving(PointPolicy(), token=TOKEN) as port:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": TOKEN}):
            with pytest.raises(InvalidStatus) as refused:
                Client(port, additional_headers=headers)
            assert refused.value.response.status_code == 401
            assert b"token" in refused.value.response.body
        with Client(port, additional_headers={"Authorization": f"Api-Key {TOKEN}"}) as client:
            assert "actions" in client.ask(seen())
        assert urlopen(f"http://127.0.0.1:{port}/healthz").read() == b"OK\n"


def test_no_web_page_may_connect():
    with serving(PointPolicy()) as port, pytest.raises(InvalidStatus) as refused:
        Client(port, origin="http://127.0.0.1")
    assert refused.value.response.status_code == 403


def test_settings_that_are_not_safe_are_refused():
    for host in ("0.0.0.0", "::", "192.168.1.5", "", "robot.example"):
        with pytest.raises(UserError, match="set a token"):
            Server(PointPolicy(), host=host)
    assert Server(PointPolicy(), host="0.0.0.0", token=TOKEN).guarded
    with pytest.raises(UserError, match="has 5 characters"):
        Server(PointPolicy(), token="short")
    with pytest.raises(UserError, match="clients is 0"):
        Server(PointPolicy(), clients=0)
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))


def test_a_taken_port_is_told():
    async def once(port: int) -> None:
        async with Server(PointPolicy(), port=port).listening():
            pass

    with serving(PointPolicy()) as port, pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        asyncio.run(once(port))


def test_one_client_too_many_is_told_to_come_back():
    with serving(PointPolicy(), clients=2) as port:
        with Client(port), Client(port) as second:
            third = Client(port, greeted=False)
            with pytest.raises(ConnectionClosed) as closed:
                third.receive()
            assert closed.value.rcvd.code == 1013
            assert "all 2 places are taken" in closed.value.rcvd.reason
            assert "actions" in second.ask(seen())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # until the server has noticed that the two left
            with Client(port, greeted=False) as client:
                try:
                    client.receive()
                    break
                except ConnectionClosed:
                    time.sleep(0.01)
        else:
            raise AssertionError("a place that was left stayed taken")


class Painter(PointPolicy):
    """Imagines pictures so large that replies fill every buffer on the way."""

    def foresee(self, memory):
        return {"static": np.zeros((len(memory["seed"]), 512, 512, 3), np.uint8)}


def test_who_does_not_listen_is_dropped_with_a_message_and_the_others_are_served(caplog):
    caplog.set_level(logging.INFO)
    with serving(Painter(), slow_s=0.3) as port, Client(port) as other:
        deaf = Client(port, max_queue=1)
        deaf.ask(seen())
        for _ in range(60):
            deaf.send({"foresee": True})
        while not any("too slow" in record.getMessage() for record in caplog.records):
            assert "actions" in other.ask(seen())
        with pytest.raises(ConnectionClosed) as closed:
            [deaf.receive() for _ in range(60)]
        assert closed.value.rcvd.code == 1008
        assert "too slow: did not take a reply within 0.3 s" in closed.value.rcvd.reason


def test_a_client_that_hangs_up_while_it_is_answered_harms_nobody():
    with serving(Slow()) as port, Client(port) as other:
        for _ in range(5):
            client = Client(port)
            client.send(seen())
            client.socket.socket.shutdown(socket.SHUT_RDWR)
            assert "actions" in other.ask(seen())


def test_a_server_that_ends_says_goodbye_and_leaves_no_thread():
    before = set(threading.enumerate())
    with serving(PointPolicy()) as port:
        client = Client(port)
        client.ask(seen())
    with pytest.raises(ConnectionClosed) as closed:
        client.receive()
    assert closed.value.rcvd.code == 1001
    client.socket.recv_events_thread.join()
    assert {thread for thread in threading.enumerate() if thread.name.startswith("policy")} <= before
