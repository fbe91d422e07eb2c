"""What happened, kept while it happens: a dataset that vla-train reads, written by a process of its own.

Every instruction is an episode with one segment (none if it failed), cut where it is longer than EPISODE_S; segment/success is
1 where someone or a rule said that it is done, else -1. The episode's `action` is what was really sent.
Beside the Spec's arrays the zarr group has, frame by frame:

    control/asked          float32 (F, A)   what the policy asked for, before limits and holds (0 where not finite)
    control/held           uint8            1 where the arm was held instead
    control/person         uint8            1 where a person drove (vla/control/takeover.py)
    control/time_ns, control/sent_ns, control/cycle_ns    int64, monotonic: measured, commanded, planned
    control/chunk, control/chunk_index      int32            which chunk an action is from, and its place in it (-1: none)
    control/inference_ms, control/lateness_us, control/sensing_us   float32
    control/success        int8             1 or 0 where someone said so, -1 else, for the episode's every frame
    control/events         text (E,)        the episode's events, a JSON list
    control/imagined/<camera>  uint8 (P, h, w, 3)   what the policy expected to see, control/imagined_ns int64 (P,) when: a
                           cycle's time; control/imagined_end int64 (E,) counts them up to and with each episode
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from gymnasium.vector import VectorEnv

from vla.control import child
from vla.control.events import Board
from vla.control.paced import CYCLE, TIME
from vla.control.safety import Safe
from vla.data.store import SUCCESS
from vla.data.writer import DatasetWriter, Segment, frame_arrays
from vla.spec import ACTION, Spec, UserError

EPISODE_S = 120.0
BACKLOG = 900
"""Frames that may wait for the writer before it counts as dead."""
CLOSE_S = 120.0
NUMBERS = {
    "held": "uint8", "person": "uint8",
    "time_ns": "int64", "sent_ns": "int64", "cycle_ns": "int64", "chunk": "int32", "chunk_index": "int32",
    "inference_ms": "float32", "lateness_us": "float32", "sensing_us": "float32", "success": "int8",
}  # fmt: skip


class Recorder:
    """The writer's process and the letters to it. Nothing here ever makes the loop wait. `listeners` get every letter, too."""

    def __init__(self, path: str | Path, spec: Spec, provenance: Mapping[str, Any]) -> None:
        self.process, connection = child.start(_write, (str(path), spec, dict(provenance)), "recorder")
        self._post = child.Post(connection, BACKLOG)
        self._lost: str | None = None
        self.listeners: list[Callable[[tuple[str, Any]], None]] = []
        self.open = False

    @property
    def lost(self) -> str | None:
        """Why nothing is recorded any more."""
        if self._lost is None and not self.process.is_alive():
            self._lost = f"status {self.process.exitcode}"
        return self._lost or self._post.broken

    def begin(self, instruction: str, task: str = "") -> None:
        """An episode begins; what came before is kept as one. task: the instruction's name in the world's table."""
        self.end()
        self.open = True
        self._put(("begin", {"instruction": instruction, "task": task}))

    def frame(self, row: Mapping[str, Any]) -> None:
        self._put(("frame", dict(row)))

    def event(self, event: Mapping[str, Any]) -> None:
        self._put(("event", dict(event)))

    def imagined(self, letter: Mapping[str, Any]) -> None:
        """What the policy expects to see: `frames`, camera -> uint8 (h, w, 3), in the cycle of `time_ns`."""
        self._put(("imagined", dict(letter)))

    def end(self, success: bool | None = None) -> None:
        """The episode is over."""
        if self.open:
            self.open = False
            self._put(("end", success))

    def close(self) -> None:
        """End the episode and wait until everything is written, for CLOSE_S at most; UserError if it then is not."""
        self.end()
        try:
            self._post.close(CLOSE_S)  # may wait: nobody is in a hurry any more
            self.process.join(CLOSE_S)
        finally:
            late = self.process.is_alive()
            self.process.kill()
        if late:
            raise UserError(f"the recording was not written within {CLOSE_S:g} s: look at the disk; its last episode is lost.")

    def _put(self, letter: tuple[str, Any]) -> None:
        for listener in self.listeners:
            listener(letter)
        if self.lost is None and not self._post.put(letter):
            self._lost = f"{BACKLOG} frames are waiting to be written"


class Recorded(VectorEnv):
    """`world`, every step of it recorded while an episode is open. A recorder that died demands a hold on the board."""

    def __init__(self, world: Safe, recorder: Recorder, board: Board) -> None:
        self.world, self.recorder, self.board = world, recorder, board
        self.num_envs, self.vla_spec = 1, world.vla_spec
        self._names = [name for name in frame_arrays(world.vla_spec) if name != ACTION]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._seen = self.world.reset(seed=seed, options=options)
        return self._seen

    def step(self, actions: np.ndarray) -> Any:
        if self.recorder.lost is not None:
            self.board.demand("recorder_dead", error=self.recorder.lost)
        notes = {"person": 0, "chunk": -1, "chunk_index": -1, "inference_ms": 0.0, **self.board.take_notes()}
        imagined = notes.pop("imagined", None)
        observation, before = self._seen
        result = self.world.step(actions)
        if self.recorder.open and "lost" not in result[-1]:
            self._record(observation, before, result[-1], notes)
            if imagined is not None:
                self.recorder.imagined(imagined)
        self._seen = result[0], result[-1]
        return result

    def _record(self, observation: Any, before: Any, after: Any, notes: dict[str, Any]) -> None:
        """The observation, the command that answered it, and when."""
        row = {name: observation[name][0] for name in self._names}
        if not all(np.isfinite(value).all() for name, value in row.items() if value.dtype.kind == "f"):
            return  # a broken reading; the event says so
        asked = np.nan_to_num(after["asked"][0], nan=0.0, posinf=0.0, neginf=0.0)
        row |= {ACTION: after["sent"][0], "asked": asked, "held": after["held"], "sent_ns": after["sent_ns"], "success": -1}
        row |= {"time_ns": observation[TIME][0], "cycle_ns": observation[CYCLE][0], **notes}
        row |= {name: before[name] for name in ("lateness_us", "sensing_us")}
        self.recorder.frame(row)


class _Writer:
    """The recorder's process: frames of one episode at a time."""

    def __init__(self, path: str, spec: Spec, provenance: dict[str, Any]) -> None:
        self.spec, self.most = spec, int(EPISODE_S * (spec.control_hz or 30))
        self.writer = DatasetWriter(path, spec, provenance)
        self.rows: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.imagined: list[dict[str, Any]] = []
        self.label = {"instruction": "", "task": ""}

    def take(self, kind: str, value: Any) -> None:
        if kind == "begin":
            self.label = value
        elif kind == "event":
            self.events.append(value)
        elif kind == "imagined":
            self.imagined.append(value)
        elif kind == "frame":
            self.rows.append(value)
            if len(self.rows) >= self.most:
                self.finish(None)
        else:
            self.finish(value)

    def finish(self, success: bool | None) -> None:
        """Commit the episode. One that has failed keeps its frames and gets no segment, so no label."""
        if self.rows:
            frames = {name: np.stack([row[name] for row in self.rows]) for name in frame_arrays(self.spec)}
            if success is not None:
                self.rows = [{**row, "success": int(success)} for row in self.rows]
            self._write_numbers()
            segment = Segment(0, len(self.rows), **self.label)
            if success is not False:
                first = self.writer.num_segments
                _extend(self.writer.group, SUCCESS, first, np.array([1 if success else -1], "int8"), ())
            self.writer.append_episode(frames, [segment] if success is not False else [], seed=self.writer.num_episodes)
        self.rows, self.events, self.imagined = [], [], []

    def _write_numbers(self) -> None:
        """Before the commit, like the frames: what is not committed is written anew."""
        first, size = self.writer.num_frames, len(self.spec.action)
        asked = np.stack([row["asked"] for row in self.rows]).astype("float32")
        _extend(self.writer.group, "control/asked", first, asked, (size,))
        for name, dtype in NUMBERS.items():
            _extend(self.writer.group, f"control/{name}", first, np.array([row[name] for row in self.rows], dtype), ())
        events = np.array([json.dumps(self.events, default=str)], dtype=np.dtypes.StringDType())
        _extend(self.writer.group, "control/events", self.writer.num_episodes, events, ())
        self._write_imagined(self.writer.group, self.writer.num_episodes)

    def _write_imagined(self, group: zarr.Group, episode: int) -> None:
        ends = cast(zarr.Array, group["control/imagined_end"]) if "control/imagined_end" in group else None
        first = int(cast(Any, ends[episode - 1])) if ends is not None and episode else 0
        if self.imagined:
            _extend(group, "control/imagined_ns", first, np.array([i["time_ns"] for i in self.imagined], "int64"), ())
            for camera in self.imagined[0]["frames"]:
                pictures = np.stack([i["frames"][camera] for i in self.imagined])
                _extend(group, f"control/imagined/{camera}", first, pictures, pictures.shape[1:])
        _extend(group, "control/imagined_end", episode, np.array([first + len(self.imagined)]), ())


def _extend(group: zarr.Group, name: str, first: int, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if name not in group:
        dtype = "str" if isinstance(values.dtype, np.dtypes.StringDType) else values.dtype
        group.create_array(name, shape=(0, *shape), dtype=dtype, chunks=(16 if len(shape) == 3 else 4096, *shape))
    array = cast(zarr.Array, group[name])
    array.resize((first + len(values), *shape))
    array[first:] = values


def _write(path: str, spec: Spec, provenance: dict[str, Any], connection: Any) -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # the loop says when it is over
    writer = _Writer(path, spec, provenance)
    with contextlib.suppress(EOFError):  # the loop is done, or gone: either way all there is has come
        while True:
            writer.take(*connection.recv())
    writer.finish(None)
    writer.writer.close()
