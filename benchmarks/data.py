"""Windows per second of three ways to keep the same play: ours, one .npz per frame as CALVIN has it, LeRobot v3 video.

    python -m benchmarks.data --source data/droid --frames 20000 --peer-frames 2000

Every window is 10 consecutive frames of two cameras at 96x96 with states (15) and actions (7), drawn at random over all
frames, in batches of 64, as uint8 tensors. The frames are real ones of the source; where it has one camera, the second is
its mirror image. The page cache is warm but in the row that says "cold". CPU-seconds compare fairly even when other jobs
run on the machine; the other rates are wall time. Writes benchmarks/results/data.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.machine import machine
from vla.data.store import Dataset, DatasetWriter, Segment
from vla.data.windows import Windows
from vla.spec import Entry, Spec

CAMERAS = ("static", "wrist")
EPISODE = 100
HISTORY = 10
BATCH = 64
SECONDS = 6.0
THREADS = 8
SPEC = Spec(
    cameras=dict.fromkeys(CAMERAS, (96, 96)),
    state=tuple(Entry(f"s{i}", "m") for i in range(15)),
    action=tuple(Entry(f"a{i}", "1", -1, 1) for i in range(7)),
    action_kind="relative_pose",
    control_hz=30,
)
Episode = dict[str, np.ndarray]


@dataclass
class Row:
    """One line of the table; None is "not measured"."""

    name: str
    frames: int
    megabytes: float | None = None
    write: float | None = None
    one: float | None = None
    per_cpu: float | None = None
    many: float | None = None


def episodes(source: Dataset, frames: int) -> Iterator[Episode]:
    """Consecutive stretches of the source as episodes of 100 frames with made-up states and actions."""
    camera, *others = source.spec.cameras
    rng = np.random.default_rng(0)
    for start in range(0, frames, EPISODE):
        at = np.arange(start, start + EPISODE)
        static = source.images(camera, at)
        wrist = source.images(others[0], at) if others else np.ascontiguousarray(static[:, :, ::-1])
        yield {
            "observation.images.static": static,
            "observation.images.wrist": wrist,
            "observation.state": rng.normal(size=(EPISODE, 15)).astype(np.float32),
            "action": rng.uniform(-1, 1, (EPISODE, 7)).astype(np.float32),
        }


def rate(batches: Callable[[], Any], limit: int = 10**9) -> tuple[float, float]:
    """Windows per second of wall time and of this process's CPU time, over 6 seconds or `limit` windows."""
    batches()
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < SECONDS and count < limit:
        count += len(batches())
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def megabytes(folder: Path, frames: int) -> float:
    """Of disk per 1000 frames."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6 / (frames / 1000)


def forget(folder: Path) -> None:
    """Ask the system to drop the folder's files from its page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def ours(folder: Path, source: Dataset, frames: int) -> list[Row]:
    begin = time.perf_counter()
    with DatasetWriter(folder, SPEC, {}) as writer:
        for episode in episodes(source, frames):
            writer.append_episode(episode, [Segment(0, EPISODE, "task", "do it")])
    write = frames / (time.perf_counter() - begin)
    rows = []
    for name, mode, history, batch, cold in (
        ("ours, in memory", "memory", HISTORY, BATCH, False),
        ("ours, streamed", "stream", HISTORY, BATCH, False),
        ("ours, streamed, cold", "stream", HISTORY, BATCH, True),
        ("ours, in memory, 1 frame and its future, batch 256", "memory", 1, 256, False),
        ("ours, the same at 64x64", "memory", 1, 256, False),
        ("ours, streamed, 1 frame and its future, batch 256", "stream", 1, 256, False),
    ):
        row = Row(name, frames, megabytes(folder, frames), write)
        for threads in (1, THREADS):
            size = 64 if "64x64" in name else None
            windows = Windows(
                *(folder, CAMERAS),
                batch_size=batch,
                history=history,
                foresight_steps=0 if history > 1 else 3,
                mode=mode,
                threads=threads,
                image_size=size,
            )
            if cold:
                forget(folder)
            number = iter(range(10**9))
            limit = frames // HISTORY // 2 if cold else 10**9  # what comes later was read before
            found = rate(lambda windows=windows, number=number: windows.batch(next(number))["task"], limit)
            if threads == 1:
                row.one, row.per_cpu = found
            else:
                row.many = found[0]
        rows.append(row)
    return rows


class FramePerFile(torch.utils.data.Dataset):
    """CALVIN's layout: one compressed .npz per frame."""

    def __init__(self, folder: Path, frames: int) -> None:
        starts = np.arange(frames)
        self.folder, self.starts = folder, starts[starts % EPISODE <= EPISODE - HISTORY]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        frames = []
        for number in range(self.starts[index], self.starts[index] + HISTORY):
            with np.load(self.folder / f"episode_{number:07d}.npz") as file:
                frames.append({name: file[name] for name in ("rgb_static", "rgb_gripper", "robot_obs", "rel_actions")})
        return {name: torch.from_numpy(np.stack([f[name] for f in frames])) for name in frames[0]}


def npz(folder: Path, source: Dataset, frames: int) -> Row:
    folder.mkdir()
    begin, number = time.perf_counter(), 0
    for episode in episodes(source, frames):
        for i in range(EPISODE):
            np.savez_compressed(
                folder / f"episode_{number:07d}.npz",
                rgb_static=episode["observation.images.static"][i],
                rgb_gripper=episode["observation.images.wrist"][i],
                robot_obs=episode["observation.state"][i],
                rel_actions=episode["action"][i],
            )
            number += 1
    row = Row("one .npz per frame", frames, megabytes(folder, frames), frames / (time.perf_counter() - begin))
    return loaded(row, FramePerFile(folder, frames))


def lerobot(folder: Path, source: Dataset, frames: int) -> Row:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # slow to import, and only needed here

    features: dict[str, Any] = {
        f"observation.images.{c}": {"dtype": "video", "shape": (96, 96, 3), "names": ["height", "width", "channels"]}
        for c in CAMERAS
    }
    features["observation.state"] = {"dtype": "float32", "shape": (15,), "names": None}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": None}
    begin = time.perf_counter()
    writer = LeRobotDataset.create("benchmark/play", 30, features, root=folder, use_videos=True)
    for episode in episodes(source, frames):
        for i in range(EPISODE):
            writer.add_frame({name: values[i] for name, values in episode.items()} | {"task": "do it"})
        writer.save_episode()
    writer.finalize()
    row = Row("LeRobot v3 video (default codec)", frames, megabytes(folder, frames), frames / (time.perf_counter() - begin))
    times = {name: [-k / 30 for k in range(HISTORY - 1, -1, -1)] for name in features}
    return loaded(row, LeRobotDataset("benchmark/play", root=folder, delta_timestamps=times, return_uint8=True))


def loaded(row: Row, dataset: Any) -> Row:
    """Rates through torch's DataLoader, in this process and with two workers."""

    def stream(workers: int) -> Callable[[], Any]:
        context = "spawn" if workers else None
        batch = BATCH if not workers else 16
        loader = DataLoader(
            dataset, batch, shuffle=True, num_workers=workers, multiprocessing_context=context, persistent_workers=bool(workers)
        )

        def endless() -> Iterator[Any]:
            while True:
                yield from loader

        batches = endless()
        return lambda: next(iter(next(batches).values()))

    row.one, row.per_cpu = rate(stream(0))
    row.many, _ = rate(stream(2))
    return row


def table(rows: list[Row]) -> str:
    base = rows[1]

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"

    lines = [
        "| format | frames | MB per 1000 frames | written, frames/s "
        "| windows/s, 1 thread | per CPU-second | 8 threads (ours), 2 workers (others) | per CPU-second, ours streamed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        same = not r.name.startswith("ours") and r.per_cpu and base.per_cpu
        ratio = f"{base.per_cpu / r.per_cpu:.0f}x" if same else ""
        cells = [r.name, str(r.frames), *(text(v) for v in (r.megabytes, r.write, r.one, r.per_cpu, r.many)), ratio]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="data/droid", help="a dataset to take frames from")
    parser.add_argument("--frames", type=int, default=20_000, help="frames in ours")
    parser.add_argument("--peer-frames", type=int, default=2_000, help="frames in the others, which take long to write")
    parser.add_argument("--out", default="benchmarks/results/data.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Dataset(options.source)
    folder = Path(tempfile.mkdtemp(prefix="data-benchmark-"))
    try:
        rows = ours(folder / "ours", source, min(options.frames, source.num_frames) // EPISODE * EPISODE)
        for measure in (npz, lerobot):
            rows.append(measure(folder / measure.__name__, source, options.peer_frames))
            print(table(rows), flush=True)
    finally:
        shutil.rmtree(folder)
    command = (
        f"python -m benchmarks.data --source {options.source} --frames {options.frames} --peer-frames {options.peer_frames}"
    )
    purpose = "\n\n".join((__doc__ or "").split("\n\n")[i] for i in (0, 2))
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    Path(options.out).write_text(f"# Data loading\n\n{purpose.strip()}\n\n    {command}\n\n{machine()}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
