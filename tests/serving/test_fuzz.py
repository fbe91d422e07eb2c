"""A hundred thousand malformed frames: the server lives, stays small and answers the others, who keep their share."""

import asyncio
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import psutil
import pytest
from pointworld import SIZE
from served import Client, array

from benchmarks.malformed import BURST, CONNECTIONS, Connection, storm

FRAMES = 100_000
SERVER = """
import sys
sys.path[:0] = [sys.argv[1]]
from pointworld import PointPolicy
from served import NAMES, serving
with serving(PointPolicy(), max_megabytes=0.2, clients=24, harness_names={"rgb_static": "static"}) as port:
    print(port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server():
    """(psutil.Process, port) of a server in a process of its own."""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", SERVER, tests]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield psutil.Process(process.pid), int(process.stdout.readline())
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(60) == 0


def seen() -> dict:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[3, 4] = 255
    pictures = {"observation.images.static": array(image), "observation.images.wrist": array(image)}
    return {**pictures, "observation.state": array(np.zeros(2, np.float32)), "task": "go to red", "reset": True}


async def live(port: int, over: asyncio.Event) -> int:
    """A client that does everything right: how many answers it got, all of which are right."""
    connection, message, served = await Connection.open(port), msgpack.packb(seen()), 0
    assert connection is not None
    want = msgpack.unpackb(await connection.ask(message))["actions"]
    while not over.is_set():
        assert msgpack.unpackb(await connection.ask(message))["actions"] == want
        served += 1
    connection.close()
    return served


def test_malformed_frames_harm_nobody(server):
    process, port = server

    async def rave(frames: int, seed: int):
        over = asyncio.Event()
        other = asyncio.create_task(live(port, over))
        found = await storm(port, frames, seen(), seed)
        over.set()
        return found, await other

    found, served = asyncio.run(rave(FRAMES // 4, seed=1))
    size, files = process.memory_info().rss, process.num_fds()
    more, served_then = asyncio.run(rave(FRAMES - FRAMES // 4, seed=2))
    found += more
    assert found["refused"] > FRAMES / 2
    assert found["refused"] + found["answered"] + found["connection ended"] == FRAMES
    # However the system schedules the two processes: whenever each of the others has had a burst, so has this one an answer.
    assert served + served_then > FRAMES / (CONNECTIONS * BURST)
    assert process.memory_info().rss - size < 16e6
    assert process.num_fds() <= files + 8
    with Client(port) as client:
        assert "actions" in client.ask(seen())
