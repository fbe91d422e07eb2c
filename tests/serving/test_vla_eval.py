"""The protocol of vla-eval, message by message as its harness writes them."""

import io

import msgpack
import numpy as np
import pytest
from PIL import Image
from pointworld import SIZE, PointPolicy
from served import Client, serving
from websockets.exceptions import ConnectionClosed

PATH = "/vla-eval"
NAMES = {"rgb_static": "static", "rgb_gripper": "wrist"}


def message(kind: str, payload: dict, seq: int = 0) -> dict:
    return {"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}


def png(image: np.ndarray, form: str = "png") -> dict:
    """A picture as its codec sends it."""
    if form == "raw":
        return {"__image__": True, "format": "raw", "data": image.tobytes(), "dtype": "|u1", "shape": list(image.shape)}
    file = io.BytesIO()
    Image.fromarray(image).save(file, form.upper())
    return {"__image__": True, "format": form, "data": file.getvalue(), "shape": list(image.shape)}


def seen(form: str = "png", **more) -> dict:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[5, 7] = 255
    state = {"__ndarray__": True, "data": np.zeros(2).tobytes(), "dtype": "<f8", "shape": [2]}
    images = {"rgb_static": png(image, form), "rgb_gripper": png(image, form)}
    return {"images": images, "states": state, "task_description": "go to red", **more}


def local(policy: PointPolicy, count: int) -> np.ndarray:
    """The first chunks of the policy in this process, one after the other."""
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, 5, 7] = 255
    rows = {"observation.images.static": image, "observation.images.wrist": image, "observation.state": np.zeros((1, 2))}
    memory, chunks = policy.begin([0]), []
    for _ in range(count):
        chunk, memory = policy.act({**rows, "task": ["go to red"]}, memory)
        chunks.append(chunk[0])
    return np.stack(chunks)


@pytest.mark.parametrize("form", ["png", "raw"])
def test_an_episode(form):
    chunks = local(PointPolicy(), 2)
    with serving(PointPolicy(), harness_names=NAMES, execute=2) as port, Client(port, PATH, greeted=False) as client:
        hello = client.ask(message("hello", {"harness_version": "0.8.0", "protocol_version": 1}, 3))
        assert (hello["type"], hello["seq"]) == ("hello", 3)
        assert hello["payload"]["protocol_version"] == 1
        assert hello["payload"]["observation_params"] == {"send_wrist_image": True, "send_state": True}
        for _ in range(2):
            client.send(message("episode_start", {"task": {"name": "x"}}))
            for k, want in enumerate([*chunks[0, :2], *chunks[1, :2]]):
                action = client.ask(message("observation", seen(form), k))
                assert (action["type"], action["seq"]) == ("action", k)
                np.testing.assert_array_equal(action["payload"]["actions"], want)
            client.send(message("episode_end", {"metrics": {}}))
        restarted = client.ask(message("observation", seen(form, episode_restart=True), 9))
        np.testing.assert_array_equal(restarted["payload"]["actions"], chunks[0, 0])


def test_a_policy_with_history_sees_every_step():
    class Counting(PointPolicy):
        def act(self, observation, memory):
            chunk, new = super().act(observation, memory)
            return np.full_like(chunk, new["seen"][0] / 100), new

    with serving(Counting(history=True), harness_names=NAMES, execute=3) as port, Client(port, PATH, greeted=False) as client:
        got = [client.ask(message("observation", seen()))["payload"]["actions"][0] for _ in range(7)]
    np.testing.assert_allclose(got, np.array([1, 1, 1, 4, 4, 4, 7]) / 100, rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            message("observation", {"images": {"rgb_static": {"__image__": True, "format": "png", "data": b"x"}}}, 4),
            "a picture",
        ),
        (message("observation", {"images": {"rgb_static": 5}}, 4), "a picture"),
        (message("observation", seen(states={"__ndarray__": True, "dtype": "|O"}), 4), "states cannot be read"),
        (message("observation", {}, 4), "no 'observation.images.static'"),
        (message("dance", {}, 4), "type 'dance' is unknown"),
        ({"type": "hello"}, "lacks a payload"),
        (b"\xc1", "cannot be read"),
    ],
)
def test_a_mistake_is_an_error_message_and_the_talk_goes_on(bad, says):
    with serving(PointPolicy(), harness_names=NAMES) as port, Client(port, PATH, greeted=False) as client:
        answer = client.ask(bad)
        assert answer["type"] == "error"
        assert says in answer["payload"]["error"]
        assert answer["seq"] == (4 if isinstance(bad, dict) and "seq" in bad else 0)
        assert client.ask(message("observation", seen(), 5))["type"] == "action"


def test_a_small_file_that_claims_a_huge_picture_is_not_unpacked():
    header = b"\x00\x00\x9c\x40" * 2 + b"\x08\x02\x00\x00\x00"  # 40000 x 40000, 8 bit RGB
    real = png(np.zeros((2, 2, 3), np.uint8))["data"]
    import zlib

    fake = real[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + real[33:]
    picture = {"__image__": True, "format": "png", "data": fake, "shape": [40000, 40000, 3]}
    with serving(PointPolicy(), harness_names=NAMES) as port, Client(port, PATH, greeted=False) as client:
        answer = client.ask(message("observation", seen(images={"rgb_static": picture})))
        assert answer["type"] == "error"
        assert "40000" in answer["payload"]["error"] or "exceeds limit" in answer["payload"]["error"]


def test_another_version_is_refused_with_the_reason():
    with serving(PointPolicy()) as port, Client(port, PATH, greeted=False) as client:
        answer = client.ask(message("hello", {"protocol_version": 2}))
        assert "speaks version 2 of its protocol but the server 1" in answer["payload"]["error"]
        with pytest.raises(ConnectionClosed):
            client.receive()


def test_frames_are_msgpack_with_text_keys():
    with serving(PointPolicy(), harness_names=NAMES) as port, Client(port, PATH, greeted=False) as client:
        client.send(message("observation", seen()))
        raw = msgpack.unpackb(client.socket.recv())
        assert set(raw) == {"type", "payload", "seq", "timestamp"}
        assert set(raw["payload"]["actions"]) == {"__ndarray__", "data", "dtype", "shape"}
