"""A session or a recording in Rerun: cameras with what was imagined beside them, state, actions, latencies, events.

    loop -> letters of the recorder -> [BACKLOG at most, the rest is dropped and counted] -> process -> Rerun

    cameras/<name>, imagined/<name>   pictures; an imagined one stands at the instant for which it was imagined
    action/<entry>                    what was sent, and what the policy asked for
    state, milliseconds               state entries; lateness, sensing, inference, reaction as in the cadence table
    instruction, events, held         texts, and 1 where the arm was held

Time is that of the controller's monotonic clock, from the first thing shown on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vla.control import child
from vla.control.events import Events, in_words
from vla.data.store import Dataset, Part
from vla.spec import ACTION, IMAGE_PREFIX, STATE, Spec, UserError, image_key

BACKLOG = 90
"""Letters that may wait for the viewer before they are dropped."""
START_S, CLOSE_S = 300.0, 30.0
PORT = 9876
"""Where Rerun's viewer listens."""
QUALITY = 90
"""Of the pictures, which are JPEGs here."""
BLOCK = 64
"""Frames that are read from a recording at once."""
USUAL = ("started", "ready", "instruction", "instruction_over", "over", "ended")
"""Events that are no warning."""
TIMES = {"lateness": ("lateness_us", 1e3), "sensing": ("sensing_us", 1e3), "inference": ("inference_ms", 1.0)}
Letter = tuple[str, Any]


class View:
    """A viewer's process for a session; `put` takes the recorder's letters and never waits.

    where: see `open_stream`. Raises UserError if the viewer cannot be reached.
    """

    def __init__(self, where: str, spec: Spec, events: Events) -> None:
        self._process, connection = child.start(_show, (where, spec), "view")
        mistake = f"view={where}: the viewer's process did not come up, see above."
        try:
            if connection.poll(START_S):
                mistake = connection.recv()
        except EOFError:
            pass
        if mistake:
            self._process.kill()
            raise UserError(mistake)
        self._post, self._events = child.Post(connection, BACKLOG), events
        self.dropped = 0

    def put(self, letter: Letter) -> None:
        if not self._post.put(letter):
            self.dropped += 1

    def close(self) -> None:
        """Show what is waiting, for CLOSE_S at most, and tell if something was dropped."""
        try:
            self._post.close(CLOSE_S)
            self._process.join(CLOSE_S)
        finally:
            self._process.kill()
        if self.dropped or self._post.broken:
            self._events.tell("view_dropped", letters=self.dropped, error=self._post.broken)


def show(path: str, episodes: Sequence[int] | None, where: str) -> int:
    """Show a dataset, or only some episodes of it; gives the number of frames shown. Raises UserError.

    Recordings of the controller have all of the module's entities, other datasets what they hold.
    """
    dataset = Dataset(path)
    wanted = range(dataset.num_episodes) if episodes is None else episodes
    for episode in wanted:
        if not 0 <= episode < dataset.num_episodes:
            raise UserError(f"episode {episode} is not in {path}: it has {dataset.num_episodes}, counted from 0.")
    screen, frames, first = Screen(open_stream(where, dataset.spec), dataset.spec), 0, 0
    for part in dataset.parts:
        for episode in range(part.episodes):
            if first + episode in wanted:
                for kind, value in letters(part, episode):
                    screen.take(kind, value)
                    frames += kind == "frame"
        first += part.episodes
    screen.close()
    return frames


def letters(part: Part, episode: int) -> Iterator[Letter]:
    """What the recorder was told in an episode of a dataset: begin, frames, events, imagined frames, end."""
    start, end = (int(part.ends[episode - 1]) if episode else 0), int(part.ends[episode])
    rows = np.flatnonzero(part.segment_episodes == episode)
    yield "begin", {"instruction": " / ".join(str(part.segment_columns[3][row]) for row in rows)}
    control: Any = part.group.get("control")
    numbers: dict[str, np.ndarray] = {"cycle_ns": (np.arange(start, end) * 1e9 / (part.spec.control_hz or 30.0)).astype(int)}
    if control is not None:
        numbers = {
            n: np.asarray(a[start:end]) for n, a in control.arrays() if n not in ("events", "imagined_ns", "imagined_end")
        }
    for first in range(start, end, BLOCK):
        block = np.arange(first, min(first + BLOCK, end))
        pictures = {image_key(camera): reader.read(block) for camera, reader in part.readers.items()}
        for k, frame in enumerate(block):
            row = {name: values[frame] for name, values in part.vectors.items()}
            row |= {name: values[frame - start] for name, values in numbers.items()}
            yield "frame", {**row, **{name: frames[k] for name, frames in pictures.items()}}
    if control is not None:
        yield from _told(control, episode)
    yield "end", None


def _told(control: Any, episode: int) -> Iterator[Letter]:
    """An episode's events and imagined frames."""
    for event in json.loads(str(control["events"][episode])):
        yield "event", event
    if "imagined_end" in control:
        first, last = (int(control["imagined_end"][episode - 1]) if episode else 0), int(control["imagined_end"][episode])
        for k in range(first, last):
            frames = {camera: np.asarray(array[k]) for camera, array in control["imagined"].arrays()}
            yield "imagined", {"time_ns": int(control["imagined_ns"][k]), "frames": frames}


class Screen:
    """Writes letters into a Rerun recording."""

    def __init__(self, stream: Any, spec: Spec) -> None:
        import rerun

        self._rerun, self._stream, self._spec = rerun, stream, spec
        self._zero: int | None = None
        self._sentence: str | None = None
        for entry in spec.action:
            self._name(f"action/{entry.name}", "sent", "asked")
        self._name("state", *(entry.name for entry in spec.state))
        self._name("milliseconds", *TIMES, "reaction")

    def take(self, kind: str, value: Any) -> None:
        if kind == "begin":
            self._sentence = value["instruction"]
        elif kind == "frame":
            self._frame(value)
        elif kind == "imagined":
            self._at(value["time_ns"])
            for camera, picture in value["frames"].items():
                self._picture(f"imagined/{camera}", picture)
        elif kind == "event":
            self._at(value["time_ns"])
            level = "INFO" if value["event"] in USUAL else "WARN"
            self._stream.log("events", self._rerun.TextLog(in_words(value), level=level))

    def close(self) -> None:
        """Everything is shown or on the disk."""
        self._stream.flush()
        self._stream.disconnect()

    def _frame(self, row: Mapping[str, Any]) -> None:
        self._at(row["cycle_ns"])
        if self._sentence is not None:
            self._stream.log("instruction", self._rerun.TextDocument(self._sentence))
            self._sentence = None
        for name, value in row.items():
            if name.startswith(IMAGE_PREFIX):
                self._picture(f"cameras/{name.removeprefix(IMAGE_PREFIX)}", value)
        if STATE in row:
            self._scalars("state", row[STATE])
        for k, entry in enumerate(self._spec.action):
            self._scalars(f"action/{entry.name}", [row[name][k] for name in (ACTION, "asked") if name in row])
        if "held" in row:
            self._scalars("held", [row["held"]])
            reaction = (int(row["sent_ns"]) - int(row["cycle_ns"])) / 1e6
            self._scalars("milliseconds", [*(float(row[name]) / unit for name, unit in TIMES.values()), reaction])

    def _at(self, ns: int) -> None:
        if self._zero is None:
            self._zero = int(ns)
        self._stream.set_time("time", duration=np.timedelta64(int(ns) - self._zero, "ns"))

    def _picture(self, path: str, picture: np.ndarray) -> None:
        self._stream.log(path, self._rerun.Image(picture).compress(jpeg_quality=QUALITY))

    def _scalars(self, path: str, values: Any) -> None:
        self._stream.log(path, self._rerun.Scalars(np.asarray(values, np.float64)))

    def _name(self, path: str, *names: str) -> None:
        self._stream.log(path, self._rerun.SeriesLines(names=names), static=True)


def open_stream(where: str, spec: Spec) -> Any:
    """A Rerun recording that is shown at `where`: "rerun" opens a viewer on this machine (or takes the one that is open),
    rerun+http://host:port/proxy is one elsewhere, and a path that ends in .rrd is a file.

    Raises UserError if it cannot be.
    """
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise UserError(f"view={where} needs Rerun, which is not installed: uv sync --extra rerun.") from error
    stream, layout = rerun.RecordingStream("hydra-vla"), _layout(spec)
    if where.endswith(".rrd"):
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        stream.save(where, default_blueprint=layout)
    elif where == "rerun":
        beside = Path(sys.executable).with_name("rerun")  # an environment need not be active
        program = str(beside) if beside.exists() else shutil.which("rerun")
        try:
            rerun.spawn(port=PORT, connect=False, executable_path=program)
        except RuntimeError as error:
            raise UserError(f"view=rerun finds no viewer ({str(error).splitlines()[0]}): use view=name.rrd.") from error
        _await("127.0.0.1", PORT, 30.0, "no viewer came up here (is there a display?)")
        stream.connect_grpc(default_blueprint=layout)
    elif where.startswith("rerun+http://"):
        url = urlsplit(where)
        _await(url.hostname or "", url.port or PORT, 5.0, f"no viewer answers at {where}")
        stream.connect_grpc(where, default_blueprint=layout)
    else:
        raise UserError(f"view is {where!r}: use rerun, rerun+http://host:{PORT}/proxy, or a path that ends in .rrd.")
    return stream


def _await(host: str, port: int, seconds: float, complaint: str) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"{complaint} ({error}): start one with `rerun`, or write a file with view=name.rrd."
                ) from error
            time.sleep(0.1)


def _layout(spec: Spec) -> Any:
    """Pictures on top, curves below, texts beside them."""
    import rerun.blueprint as blueprint

    pictures = [
        blueprint.Spatial2DView(origin=f"{kind}/{camera}", name=f"{camera}{what}")
        for camera in spec.cameras
        for kind, what in (("cameras", ""), ("imagined", ", imagined for now"))
    ]
    actions = [blueprint.TimeSeriesView(origin=f"action/{entry.name}", name=entry.name) for entry in spec.action]
    curves = [blueprint.TimeSeriesView(origin=name, name=name) for name in ("state", "milliseconds", "held")]
    texts = [
        blueprint.TextDocumentView(origin="instruction", name="instruction"),
        blueprint.TextLogView(origin="events", name="events"),
    ]
    right = blueprint.Vertical(*texts, row_shares=[1, 4])
    left = blueprint.Vertical(
        *([blueprint.Horizontal(*pictures)] if pictures else []), blueprint.Grid(*actions), blueprint.Horizontal(*curves)
    )
    return blueprint.Blueprint(blueprint.Horizontal(left, right, column_shares=[4, 1]), collapse_panels=True)


def _show(where: str, spec: Spec, connection: Any) -> None:
    """The viewer's process: says "" or a mistake, then shows letters until there are no more."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # the loop says when it is over
    try:
        screen = Screen(open_stream(where, spec), spec)
    except UserError as error:
        connection.send(str(error))
        return
    os.nice(5)  # whoever watches can wait
    connection.send("")
    try:
        while True:
            screen.take(*connection.recv())
    except EOFError:
        screen.close()
