"""A policy server: latency and throughput beside a server loop as openpi has it, and what malformed frames do to it.

    python -m benchmarks.serving --seconds 5 --malformed 100000

Clients ask as soon as they have their answer, with pictures of the sizes that the checkpoint was trained on; server and
clients have a process each. The peer answers one message after the other in its event loop, as openpi's server does, here
with the same policy. Then malformed frames are sent (benchmarks/malformed.py) to a server whose policy costs nothing, beside
one client that goes on asking at 30 Hz. Writes benchmarks/results/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import torch
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.machine import machine
from benchmarks.malformed import CONNECTIONS, storm
from vla.checkpoint import load_policy, read_checkpoint
from vla.serving.run import blank, warm_up
from vla.serving.server import Server
from vla.spec import IMAGE_PREFIX, STATE, TASK, Entry, Spec
from vla.wire import decode, encode

CLIENTS = (1, 4, 16)
RATE_HZ = 30
PLAIN = Spec(
    cameras={"static": (8, 8)},
    state=(Entry("x", "m"), Entry("y", "m")),
    action=tuple(Entry(f"a{i}", "1", -1, 1) for i in range(7)),
    action_kind="relative_pose",
    control_hz=30,
)


class Plain:
    """Costs nothing."""

    spec, history = PLAIN, False

    def begin(self, seeds: Any) -> None:
        return None

    def act(self, observation: Any, memory: None) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation[TASK]), 10, 7), np.float32), memory

    def remember(self, observation: Any, memory: None) -> None:
        return memory


def _ours(policy: Any, port: Any) -> None:
    async def run() -> None:
        async with Server(policy, port=0, clients=256, max_megabytes=2).listening() as found:
            port.send(found)
            await asyncio.Event().wait()

    asyncio.run(run())


def _loop(policy: Any, port: Any) -> None:
    """As openpi serves a policy: unpack, infer, pack, in the event loop."""

    async def talk(connection: ServerConnection) -> None:
        await connection.send(encode({}))
        memory = policy.begin([0])
        async for frame in connection:
            message = decode(frame)
            rows = {name: [value] if name == TASK else value[None] for name, value in message.items()}
            start = time.perf_counter()
            actions, memory = policy.act(rows, memory)
            timing = {"infer_ms": 1e3 * (time.perf_counter() - start)}
            await connection.send(encode({"actions": actions[0], "server_timing": timing}))

    async def run() -> None:
        async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
            port.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.Event().wait()

    asyncio.run(run())


def _child(kind: str, checkpoint: str | None, port: Any) -> None:
    torch.set_num_threads(1)
    policy = load_policy(checkpoint) if checkpoint else Plain()
    warm_up(policy)
    (_ours if kind == "ours" else _loop)(policy, port)


@contextmanager
def server(kind: str, checkpoint: str | None) -> Iterator[tuple[psutil.Process, int]]:
    """A server in a process of its own: that process, and its port."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(kind, checkpoint, there), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield psutil.Process(process.pid), here.recv()
    finally:
        process.kill()
        process.join()


async def closed_loop(port: int, message: bytes, until: float) -> list[float]:
    """One client: the seconds that each of its questions took."""
    took = []
    async with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as connection:
        await connection.recv()
        while time.perf_counter() < until:
            begin = time.perf_counter()
            await connection.send(message)
            if isinstance(reply := await connection.recv(), str):
                raise RuntimeError(reply)
            took.append(time.perf_counter() - begin)
    return took


@dataclass
class Row:
    """One line of the table; times in milliseconds."""

    clients: int
    rate: float
    median: float
    p99: float
    cpu: float


async def robot(port: int, message: bytes, over: asyncio.Event) -> list[float]:
    """A client that asks at RATE_HZ until the event: the seconds that each of its questions took."""
    took, due = [], time.perf_counter()
    async with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as connection:
        await connection.recv()
        while not over.is_set():
            begin = time.perf_counter()
            await connection.send(message)
            if isinstance(reply := await connection.recv(), str):
                raise RuntimeError(reply)
            took.append(time.perf_counter() - begin)
            due = max(due + 1 / RATE_HZ, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
    return took


def measure(kind: str, checkpoint: str, seconds: float) -> Iterator[Row]:
    """One row for each number of clients."""
    spec = read_checkpoint(checkpoint).spec
    rng = np.random.default_rng(0)
    seen = blank(spec) | {TASK: "open the drawer"}
    seen |= {n: rng.integers(0, 256, v.shape, dtype=np.uint8) for n, v in seen.items() if n.startswith(IMAGE_PREFIX)}
    needed = {n: v for n, v in seen.items() if n in (STATE, TASK) or n.startswith(IMAGE_PREFIX)}

    async def run(port: int, clients: int, length: float) -> list[float]:
        until = time.perf_counter() + length
        each = await asyncio.gather(*(closed_loop(port, encode(needed), until) for _ in range(clients)))
        return [seconds for took in each for seconds in took]

    with server(kind, checkpoint) as (process, port):
        for clients in CLIENTS:
            asyncio.run(run(port, clients, 0.5))
            before, begin = process.cpu_times(), time.perf_counter()
            took = asyncio.run(run(port, clients, seconds))
            wall, after = time.perf_counter() - begin, process.cpu_times()
            cpu = after.user + after.system - before.user - before.system
            median, p99 = (float(1e3 * np.percentile(took, share)) for share in (50, 99))
            yield Row(clients, len(took) / wall, median, p99, 1e3 * cpu / len(took))


def flood(count: int, seed: int, seconds: float) -> Iterator[str]:
    """Lines of a table: a client at RATE_HZ alone, then beside malformed frames; and what came of these, in words."""
    valid = {name: value if name == TASK else _raw(value) for name, value in blank(PLAIN).items()}
    message = msgpack.packb(valid)

    async def beside(port: int, work: Callable[[], Any]) -> tuple[Any, list[float], float]:
        """What `work` gives in another process or thread, and the client's times meanwhile."""
        over, begin = asyncio.Event(), time.perf_counter()
        live = asyncio.create_task(robot(port, message, over))
        found = await asyncio.get_running_loop().run_in_executor(pool, work)
        over.set()
        return found, await live, time.perf_counter() - begin

    def row(name: str, took: list[float], wall: float) -> str:
        median, p99, worst = (1e3 * float(np.percentile(took, share)) for share in (50, 99, 100))
        return f"| {name} | {len(took) / wall:.1f} | {median:.1f} | {p99:.1f} | {worst:.0f} |"

    yield f"| a client that asks at {RATE_HZ} Hz | answers/s | median latency, ms | 99th percentile, ms | worst, ms |"
    yield "|---|---|---|---|---|"
    with server("ours", None) as (process, port), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_storm, port, 2000, valid, seed + 1).result()
        size, files = process.memory_info().rss, process.num_fds()
        _, took, wall = asyncio.run(beside(port, functools.partial(time.sleep, seconds)))
        yield row("alone", took, wall)
        found, took, wall = asyncio.run(beside(port, functools.partial(_storm, port, count, valid, seed)))
        yield row(f"beside {CONNECTIONS} connections that send malformed frames", took, wall)
        grown, left = process.memory_info().rss - size, process.num_fds() - files
    kinds = ", ".join(f"{number} {kind}" for kind, number in found.most_common())
    yield ""
    yield (
        f"{count} malformed frames (seed {seed}) in {wall:.0f} s: {kinds}. The server lives; its memory grew by "
        f"{grown / 1e6:.1f} MB and its open files by {left} since the first 2,000."
    )


def _storm(port: int, count: int, valid: dict[Any, Any], seed: int) -> Any:
    return asyncio.run(storm(port, count, valid, seed))


def _raw(value: np.ndarray) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/gr1_small")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--malformed", type=int, default=100_000, help="how many malformed frames")
    parser.add_argument("--seed", type=int, default=0, help="of the malformed frames")
    parser.add_argument("--out", default="benchmarks/results/serving.md")
    options = parser.parse_args()
    lines = [
        "| server | clients | answers/s | median latency, ms | 99th percentile, ms | server's CPU per answer, ms |",
        "|---|---|---|---|---|---|",
    ]
    for kind, name in (("ours", "vla-serve"), ("loop", "a loop as openpi's")):
        for row in measure(kind, options.checkpoint, options.seconds):
            lines.append(f"| {name} | {row.clients} | {row.rate:.1f} | {row.median:.1f} | {row.p99:.1f} | {row.cpu:.1f} |")
            print(lines[-1], flush=True)
    lines.append("")
    for line in flood(options.malformed, options.seed, options.seconds):
        lines.append(line)
        print(line, flush=True)
    command = (
        f"python -m benchmarks.serving --seconds {options.seconds:g} --malformed {options.malformed} --seed {options.seed}"
    )
    purpose = "\n\n".join((__doc__ or "").split("\n\n")[i] for i in (0, 2))
    Path(options.out).write_text(
        f"# Serving\n\n{purpose.strip()}\n\n    {command}\n\n{machine()}\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
