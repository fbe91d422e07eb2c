"""The far side of a world that runs in another interpreter: one simulator, asked over a socket.

    python -I server.py ADAPTER SOCKET MEMORY      two open file descriptors; `envs.elsewhere.process` starts it so

This file needs NumPy and msgpack and runs on Python 3.8 and later. ADAPTER is a file with a class `World`, the simulator's
own code (see gym.py beside this file). Requests and replies are msgpack maps, one reply to each request:

    open      protocol, cameras, options, versions       -> protocol, spec, offers
    reset     seed, task, draw                           -> task, reward, terminated, truncated, success
              at: name -> numbers, where the adapter's reset takes more
    step      action, draw                               -> the same
    draw                                                 -> the same; pictures of this instant
    save                                                 -> saved: bytes
    restore   saved, draw                                -> the same

with `told`, where the adapter has a method of this name: what it has to say beyond an observation. All requests have
`limit`, in seconds: a request that takes longer ends the process, with a trace of where it hung on stderr. What cannot be
done is answered with `error`, one sentence. Observations do not go through the socket: they lie in MEMORY, a file that both
sides map, in the order of `layout`. An episode that has ended stands still until it is reset; `success` stays true once it was.
"""

from __future__ import annotations

import faulthandler
import math
import mmap
import os
import runpy
import socket
import struct
import sys
import time
import traceback
from importlib import metadata
from typing import Any

try:
    import msgpack
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"{missing} ({sys.executable}): install numpy and msgpack there") from missing

PROTOCOL = 1
SPEC_SCHEMA = 1
LARGEST = 1 << 26
"""Bytes of a message."""
STATE, ENVIRONMENT_STATE, EXPERT = "observation.state", "observation.environment_state", "observation.expert"


def layout(spec, expert):
    """Where the arrays of an observation lie in memory: [(name, dtype, shape, offset)], and the bytes in all.

    spec: as `vla.spec.Spec.to_dict` gives it; expert: whether the action of a scripted expert is among them.
    """
    arrays = [("observation.images." + name, "u1", (*size, 3)) for name, size in spec["cameras"].items()]
    arrays += [(STATE, "<f4", (len(spec["state"]),)), (ENVIRONMENT_STATE, "<f4", (len(spec["environment_state"]),))]
    arrays += [(EXPERT, "<f4", (len(spec["action"]),))] if expert else []
    placed, end = [], 0
    for name, dtype, shape in arrays:
        if math.prod(shape):
            placed.append((name, dtype, shape, end))
            end += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64
    return placed, max(end, 64)


def views(placed, memory):
    """The arrays of `layout` in a mapped file: name -> array."""
    return {
        name: np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape) for name, dtype, shape, offset in placed
    }


def plain(matrices):
    return {name: [float(x) for x in matrix] for name, matrix in matrices.items()}


def send(link, message):
    """Send a map; raises OSError where the other side has gone."""
    frame: Any = msgpack.packb(message)
    link.sendall(struct.pack(">I", len(frame)) + frame)


def receive(link, deadline=None):
    """The next map. Raises EOFError where the other side has gone, ValueError for what is no message, and TimeoutError after
    `deadline` (of time.monotonic)."""
    (length,) = struct.unpack(">I", _exactly(link, 4, deadline))
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes")
    frame = _exactly(link, length, deadline)
    try:
        message = msgpack.unpackb(frame)
    except Exception as error:
        raise ValueError(f"no msgpack ({error or type(error).__name__})") from error
    if not isinstance(message, dict):
        raise ValueError(f"a {type(message).__name__} instead of a map")
    return message


def _exactly(link, count, deadline):
    parts = []
    while count:
        if deadline is not None:
            link.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            part = link.recv(min(count, 1 << 20))
        except socket.timeout as late:  # another name of TimeoutError only from Python 3.10 on
            raise TimeoutError from late
        except ConnectionError as gone:
            raise EOFError from gone
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Server:
    """Answers the requests that come over `link` with one world of an adapter."""

    def __init__(self, adapter, link, memory_file):
        self.adapter, self.link, self.memory_file = adapter, link, memory_file
        self.world: Any = None

    def serve(self):
        """Until the other side closes the socket."""
        while True:
            try:
                request = receive(self.link)
            except EOFError:
                break
            faulthandler.dump_traceback_later(request["limit"], exit=True)
            try:
                reply = getattr(self, "do_" + request["call"])(request)
            except Exception as error:
                traceback.print_exc()
                reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
            faulthandler.cancel_dump_traceback_later()
            try:
                send(self.link, reply)
            except OSError:
                break
        if self.world is not None and hasattr(self.world, "close"):
            self.world.close()

    def do_open(self, request):
        if request["protocol"] != PROTOCOL:
            raise ValueError("protocol {} is asked for, this server speaks {}".format(request["protocol"], PROTOCOL))
        for package, wanted in request["versions"].items():
            try:
                there = metadata.version(package)
            except metadata.PackageNotFoundError:
                raise ValueError(f"{package} is not installed, {wanted} is needed") from None
            if there != wanted:
                raise ValueError(f"{package} is {there} there, {wanted} is needed")
        self.world = world = runpy.run_path(self.adapter)["World"](request["cameras"], **request["options"])
        self.spec = {
            "schema": SPEC_SCHEMA,
            "cameras": {name: list(size) for name, size in request["cameras"].items()},
            "state": [dict(name=n, unit=u, low=None, high=None) for n, u in world.state],
            "action": [dict(name=n, unit=u, low=float(low), high=float(high)) for n, u, low, high in world.action],
            "environment_state": [dict(name=n, unit=u, low=None, high=None) for n, u in world.environment_state],
            "action_kind": world.action_kind,
            "control_hz": float(world.control_hz),
            "frame": world.frame,
            **{kind: plain(getattr(world, kind, {})) for kind in ("projections", "hand_projections")},
        }
        offers = [name for name in ("expert", "save", "told") if hasattr(world, name)]
        placed, size = layout(self.spec, "expert" in offers)
        os.ftruncate(self.memory_file, size)
        self.views = views(placed, mmap.mmap(self.memory_file, size))
        return {"protocol": PROTOCOL, "spec": self.spec, "offers": offers}

    def begin(self, start):
        self.start = {"seed": start["seed"], "task": start["task"], "at": start.get("at", {})}
        self.world.reset(start["seed"], start["task"], **self.start["at"])

    def do_reset(self, request):
        self.begin(request)
        success = bool(self.world.success)
        self.outcome = {"task": self.start["task"], "reward": 0.0, "terminated": False, "truncated": False, "success": success}
        return self.observed(request["draw"])

    def do_step(self, request):
        if self.outcome["terminated"] or self.outcome["truncated"]:
            self.outcome["reward"] = 0.0
        else:
            reward, terminated, truncated = self.world.step(np.array(request["action"], np.float64))
            self.outcome["success"] = self.outcome["success"] or bool(self.world.success)
            self.outcome.update(reward=float(reward), terminated=bool(terminated), truncated=bool(truncated))
        return self.observed(request["draw"])

    def do_draw(self, request):
        return self.observed(True)

    def do_save(self, request):
        return {"saved": msgpack.packb({**self.start, "outcome": self.outcome, "world": self.world.save()})}

    def do_restore(self, request):
        saved = msgpack.unpackb(request["saved"])
        self.begin(saved)
        self.world.restore(saved["world"])
        self.outcome = saved["outcome"]
        return self.observed(request["draw"])

    def observed(self, draw):
        """Put the observation of this instant into memory; the reply."""
        for name, values in self.world.observe().items():
            self.put(name, values)
        if EXPERT in self.views:
            self.put(EXPERT, self.world.expert())
        if draw:
            for name in self.spec["cameras"]:
                self.put("observation.images." + name, self.world.draw(name))
        return dict(self.outcome, told=self.world.told()) if hasattr(self.world, "told") else self.outcome

    def put(self, name, values):
        view, values = self.views[name], np.asarray(values)
        if values.shape != view.shape:
            raise ValueError(f"{name} has shape {values.shape}, {view.shape} was promised")
        view[...] = values


def main(adapter, link, memory):
    faulthandler.enable()
    Server(adapter, socket.socket(fileno=int(link)), int(memory)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
