"""openpi's own client, unchanged, against the command in a process; and many clients whose actions must not mix."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from served import serving

from vla.checkpoint import load_policy
from vla.spec import Spec

TASKS = ("open the drawer", "push the red block to the left", "turn on the light bulb")


def seen(k: int) -> dict:
    """An observation in the words of openpi's robots, of pictures that differ from robot to robot."""
    rng = np.random.default_rng(k)
    side = (16, 20, 24)[k % 3]
    return {
        "observation/image": rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (12, 12, 3), dtype=np.uint8),
        "observation/state": rng.normal(size=15),
        "prompt": TASKS[k % 3],
    }


def ours(k: int) -> dict:
    """The same for the policy itself."""
    o = seen(k)
    images = {"observation.images.static": o["observation/image"], "observation.images.wrist": o["observation/wrist_image"]}
    state = o["observation/state"].astype(np.float32)
    return {**{n: i[None] for n, i in images.items()}, "observation.state": state[None], "task": [o["prompt"]]}


def alone(policy, robot: int, steps: int) -> np.ndarray:
    """What the policy does for one robot when it has nobody else to think of: (steps, horizon, A)."""
    memory, chunks = policy.begin([robot]), []
    for step in range(steps):
        chunk, memory = policy.act(ours(10 * robot + step), memory)
        chunks.append(chunk[0])
    return np.stack(chunks)


def test_the_client_works_unchanged(process, checkpoint):
    policy = load_policy(checkpoint)
    client = WebsocketClientPolicy("127.0.0.1", process[1])
    metadata = client.get_server_metadata()
    assert Spec.from_dict(metadata["spec"]) == policy.spec
    assert metadata["policy"] == "tiny"
    client.reset()
    want = alone(policy, 0, 3)
    for step in range(3):
        reply = client.infer(seen(step))
        np.testing.assert_array_equal(reply["actions"], want[step])
        assert reply["actions"].dtype == np.float32
        assert reply["server_timing"]["infer_ms"] > 0
    with pytest.raises(RuntimeError, match="no 'task'"):
        client.infer({k: v for k, v in seen(0).items() if k != "prompt"})
    again = client.infer({**seen(0), "reset": True, "seed": 0})
    np.testing.assert_array_equal(again["actions"], want[0])


def test_its_broker_gives_one_action_at_a_time(process, checkpoint):
    broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", process[1]), action_horizon=4)
    chunk = alone(load_policy(checkpoint), 0, 1)[0]
    for action in chunk:
        np.testing.assert_array_equal(broker.infer(seen(0))["actions"], action)


def test_an_action_does_not_depend_on_who_else_is_in_the_batch(checkpoint):
    policy = load_policy(checkpoint)
    robots, steps = 7, 4
    want = [alone(policy, robot, steps) for robot in range(robots)]

    def drive(robot: int) -> list[int]:
        client = WebsocketClientPolicy("127.0.0.1", port)
        sizes = []
        for step in range(steps):
            start = {"reset": True, "seed": robot} if step == 0 else {}
            reply = client.infer({**seen(10 * robot + step), **start})
            np.testing.assert_array_equal(reply["actions"], want[robot][step])
            sizes.append(reply["server_timing"]["batch"])
            time.sleep(0.001 * robot)  # so that batches are put together in many ways
        return sizes

    with serving(policy, gather_ms=20) as port, ThreadPoolExecutor(robots) as pool:
        sizes = [size for sizes in pool.map(drive, range(robots)) for size in sizes]
    assert max(sizes) > 1
