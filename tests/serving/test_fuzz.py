"""Thousands of malformed frames: the server lives, stays small and answers the others. benchmarks/serving.py sends 100,000."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from pointworld import SIZE
from served import Client, array

from benchmarks.malformed import storm

FRAMES = 2000
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


def test_malformed_frames_harm_nobody(server):
    process, port = server
    over, served = threading.Event(), []

    def live() -> None:
        with Client(port) as client:
            want = client.ask(seen())["actions"]
            while not over.is_set():
                np.testing.assert_array_equal(client.ask(seen())["actions"], want)
                served.append(1)

    other = threading.Thread(target=live)
    other.start()
    try:
        found = asyncio.run(storm(port, FRAMES // 4, seen(), seed=1))
        served_before, size, files = len(served), process.memory_info().rss, process.num_fds()
        found += asyncio.run(storm(port, FRAMES - FRAMES // 4, seen(), seed=100))
    finally:
        over.set()
        other.join(120)
    assert not other.is_alive()
    assert len(served) > served_before > 0
    assert found["refused"] > FRAMES / 2
    assert found["refused"] + found["answered"] + found["connection ended"] == FRAMES
    assert process.memory_info().rss - size < 16e6
    assert process.num_fds() <= files + 8
    with Client(port) as client:
        assert "actions" in client.ask(seen())
