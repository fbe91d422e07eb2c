"""Servers for tests: in a thread of this process, or as the command in one of its own."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager

import msgpack
import numpy as np
from websockets.sync.client import connect

from vla.serving.server import Server

NAMES = {
    "observation/image": "observation.images.static",
    "observation/wrist_image": "observation.images.wrist",
    "observation/state": "observation.state",
    "prompt": "task",
}


class Still:
    """Does nothing, for any spec."""

    history = False

    def __init__(self, spec):
        self.spec = spec

    def begin(self, seeds):
        return None

    def act(self, observation, memory):
        return np.zeros((len(observation["task"]), 4, len(self.spec.action)), np.float32), memory

    def remember(self, observation, memory):
        return memory


@contextmanager
def serving(policy, **settings):
    """The port of a server in a thread, which is closed at the end."""
    server, ready, ports = Server(policy, **{"port": 0, "names": NAMES, **settings}), threading.Event(), []
    loop, told = asyncio.new_event_loop(), asyncio.Event()

    async def serve():
        async with server.listening() as port:
            ports.append(port)
            ready.set()
            await told.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(told.set)
        thread.join(30)
        assert not thread.is_alive()
        assert not asyncio.all_tasks(loop)
        loop.close()


@contextmanager
def command(*overrides, **environment):
    """A `vla-serve` in its own process: (process, port)."""
    arguments = [sys.executable, "-u", "-m", "vla.commands.serve", "server.port=0", *overrides]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )
    try:
        for line in process.stdout:
            if match := re.search(r"serving .* on ws://.*:(\d+) ", line):
                yield process, int(match[1])
                break
        else:
            raise AssertionError(f"vla-serve ended with {process.wait()}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def array(a):
    """An array as openpi puts it on the wire, written by hand."""
    return {b"__ndarray__": True, b"data": a.tobytes(), b"dtype": a.dtype.str, b"shape": a.shape}


def plain(value):
    """The inverse, for whole messages."""
    if isinstance(value, dict) and (b"__ndarray__" in value or "__ndarray__" in value):
        value = {k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()}
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


class Client:
    """A bare websocket that speaks msgpack; `metadata` is the server's first word."""

    def __init__(self, port, path="/", greeted=True, **options):
        opening = connect(f"ws://127.0.0.1:{port}{path}", compression=None, max_size=None, proxy=None, **options)
        self.socket = opening.__enter__()
        self.metadata = self.receive() if greeted else None

    def send(self, message):
        self.socket.send(message if isinstance(message, bytes | str) else msgpack.packb(message))

    def receive(self):
        frame = self.socket.recv(timeout=30)
        return frame if isinstance(frame, str) else plain(msgpack.unpackb(frame))

    def ask(self, message):
        self.send(message)
        return self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
