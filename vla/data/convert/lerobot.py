"""A LeRobotDataset v3 in a local folder as a dataset of ours. LeRobot itself is not needed to read it.

    meta/info.json                            fps, features, path templates
    meta/tasks.parquet                        sentence (the index) -> task_index
    meta/episodes/chunk-*/file-*.parquet      per episode: length, which files, from where in each video
    data/chunk-*/file-*.parquet               one row per frame; pictures of image form as PNG in it
    videos/<camera>/chunk-*/file-*.mp4        pictures of video form, many episodes in a file
    meta/vla.json                             only where to_lerobot wrote it: our Spec, and every episode's segments

Names, scales and meaning of the numbers are not in the format, beyond a name per entry: without meta/vla.json the Spec has
those names and what `action_kind` and `frame` say, or is that of another dataset (`like`).
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from av.error import FFmpegError
from PIL import Image
from tqdm import tqdm

from vla.data.convert.files import Fault, in_order, inside
from vla.data.convert.report import Summary
from vla.data.store import Dataset
from vla.data.writer import DatasetWriter, Segment
from vla.spec import ACTION, ENVIRONMENT_STATE, IMAGE_PREFIX, STATE, Entry, Spec, UserError, image_key

OURS = "meta/vla.json"
VECTORS = (STATE, ENVIRONMENT_STATE, ACTION)


@dataclass(frozen=True)
class Camera:
    """One camera: its feature's name there, its form there ("image" or "video"), and (height, width)."""

    key: str
    form: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """What the folder's own tables say."""

    root: Path
    info: dict[str, Any]
    tasks: dict[int, str]
    spec: Spec
    cameras: dict[str, Camera]
    ours: dict[str, Any] = field(default_factory=dict)

    def file(self, template: str, **where: Any) -> str:
        try:
            return str(self.info[template]).format(**where)
        except (KeyError, ValueError, IndexError) as error:
            raise Fault(f"cannot be found: meta/info.json has no usable {template} ({error})") from None


@dataclass(frozen=True)
class Episode:
    """All arrays of one episode, and its segments."""

    scene: str
    frames: dict[str, np.ndarray]
    segments: list[Segment]


def convert(
    path: str | Path,
    out: str | Path,
    action_kind: str = "joints",
    frame: str = "",
    like: str | None = None,
    threads: int = 2,
) -> Summary:
    """Turn a LeRobotDataset v3 into one of ours, episode by episode; run again it goes on.

    action_kind, frame: for the Spec, where the folder does not say. like: a dataset of ours whose Spec this one's numbers
    meet. An episode's seed is its number there. Damaged episodes are skipped and told.
    """
    root = Path(path)
    skipped: dict[str, str] = {}
    source = _open(root, action_kind, frame, like)
    rows = list(_episode_rows(root, skipped))
    settings = {"source": "lerobot"}
    with DatasetWriter(out, source.spec, {"conversion": settings}) as writer:
        if writer.provenance.get("conversion") != settings:
            raise UserError(f"dataset {out} was begun with {writer.provenance.get('conversion')}: choose another out=...")
        done = set(writer.seeds.tolist())
        left = [row for row in rows if row["episode_index"] not in done]
        if done:
            print(f"{len(done)} of {len(rows)} episodes are in {out} already")
        total = sum(row["length"] for row in left)
        with tqdm(total=total, unit="frame", unit_scale=True, smoothing=0.05, desc="converting") as bar:
            for row, episode in zip(left, in_order(partial(_episode_or_fault, source), left, threads), strict=True):
                if isinstance(episode, str):
                    skipped[f"episode {row['episode_index']}"] = episode
                else:
                    writer.append_episode(episode.frames, episode.segments, scene=episode.scene, seed=row["episode_index"])
                bar.update(row["length"])
        made = {"episodes": writer.num_episodes, "frames": writer.num_frames, "segments": writer.num_segments}
    if not made["episodes"]:
        name, fault = next(iter(skipped.items()), ("it", "has none"))
        raise UserError(f"no episode of {root} could be used (first: {name} {fault}): mend the files.")
    return Summary(made, skipped)


def spec_of(root: str | Path, action_kind: str = "joints", frame: str = "") -> Spec:
    """The Spec of the LeRobotDataset in a folder: see the module. UserError if there is none."""
    return _open(Path(root), action_kind, frame, None).spec


def _open(root: Path, action_kind: str, frame: str, like: str | None) -> Source:
    """The tables that are needed whole; UserError without them."""
    try:
        info = json.loads((root / "meta/info.json").read_text())
        features = {
            str(k): (str(f["dtype"]), [int(n) for n in f["shape"]], f.get("names")) for k, f in info["features"].items()
        }
        fps, version = float(info["fps"]), str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root / 'meta/info.json'} is not that of a LeRobotDataset ({error!r}): check path=...") from None
    if not version.startswith("v3."):
        raise UserError(f"{root} has version {version}: convert it to v3.0 with LeRobot's own script first.")
    cameras = {}
    for key, (form, shape, names) in features.items():
        if form in ("image", "video"):
            channels_first = bool(names) and "channel" in str(names[0]) if isinstance(names, list) else False
            size = (shape[1], shape[2]) if channels_first else (shape[0], shape[1])
            cameras[key.removeprefix(IMAGE_PREFIX).replace(".", "_")] = Camera(key, form, size)
    entries = {
        key: tuple(Entry(name, "1") for name in _names(names, shape))
        for key, (_, shape, names) in features.items()
        if key in VECTORS
    }
    ours = json.loads((root / OURS).read_text()) if (root / OURS).exists() else {}
    given = Spec.from_dict(ours["spec"]) if ours else Dataset(like).spec if like else None
    spec = Spec(
        cameras={name: camera.size for name, camera in cameras.items()},
        state=entries.get(STATE, ()),
        action=entries.get(ACTION, ()),
        environment_state=entries.get(ENVIRONMENT_STATE, ()),
        action_kind=action_kind if ACTION in entries else "none",
        control_hz=fps,
        frame=frame,
    )
    return Source(root, info, _tasks(root), _meant(spec, given) if given else spec, cameras, ours.get("episodes", {}))


def _names(names: Any, shape: list[int]) -> list[str]:
    """One name per number; LeRobot has a list, a dict of lists, or nothing."""
    if isinstance(names, dict):
        names = [n for part in names.values() for n in part]
    count = shape[0] if len(shape) == 1 else 0
    return [str(n) for n in names] if isinstance(names, list) and len(names) == count else [str(i) for i in range(count)]


def _meant(spec: Spec, given: Spec) -> Spec:
    """The given Spec with the cameras that are there; UserError if the numbers are not as many."""
    for kind in ("state", "action", "environment_state"):
        has, wanted = len(getattr(spec, kind)), len(getattr(given, kind))
        if has and has != wanted:
            raise UserError(f"the dataset has {kind} of {has} numbers, the Spec that it should meet {wanted}: choose another.")
    kept = {kind: getattr(given, kind) if getattr(spec, kind) else () for kind in ("state", "action", "environment_state")}
    return dataclasses.replace(given, cameras=spec.cameras, control_hz=spec.control_hz, **kept)


def _tasks(root: Path) -> dict[int, str]:
    table = _table(root / "meta/tasks.parquet", ["task_index"], whole=True)
    text = next((c for c in table.column_names if c != "task_index"), None)
    if text is None:
        raise UserError(f"{root / 'meta/tasks.parquet'} has no sentences: restore it.")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))


def _table(path: Path, columns: list[str], whole: bool = False) -> pa.Table:
    """A parquet file's columns; Fault if one is not there, UserError instead where nothing goes without the file."""
    try:
        if not path.exists():
            raise Fault("is missing")
        there = pq.read_schema(path).names
        if lacks := [c for c in columns if c not in there]:
            raise Fault(f"lacks the column {lacks[0]}")
        return pq.ParquetFile(path).read(columns=None if whole else columns)
    except (pa.ArrowException, OSError) as error:
        fault = f"cannot be read ({str(error).splitlines()[0]})"
    except Fault as missing:
        fault = str(missing)
    if whole:
        raise UserError(f"{path} {fault}: restore it.")
    raise Fault(fault)


def _episode_rows(root: Path, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One dict per episode, in order; files that cannot be read and numbers that come twice are skipped."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        try:
            names = [n for n in pq.read_schema(path).names if not n.startswith("stats/")]
            needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            for row in _table(path, [*needed, *(n for n in names if n not in needed)]).to_pylist():
                index, length = row["episode_index"], row["length"]
                if not isinstance(index, int) or not isinstance(length, int):
                    raise Fault(f"has an episode {index!r} of {length!r} frames")
                if index in rows:
                    skipped[f"{path.relative_to(root)} episode {index}"] = "is there twice"
                elif length < 1:
                    skipped[f"episode {index}"] = "is empty"
                else:
                    rows[index] = row
        except (Fault, pa.ArrowException, OSError) as fault:
            skipped[str(path.relative_to(root))] = str(fault).splitlines()[0]
    yield from (rows[index] for index in sorted(rows))


def _episode_or_fault(source: Source, row: Mapping[str, Any]) -> Episode | str:
    try:
        return _episode(source, row)
    except Fault as fault:
        return str(fault)


def _episode(source: Source, row: Mapping[str, Any]) -> Episode:
    index, length = row["episode_index"], row["length"]
    pictures = {name: c for name, c in source.cameras.items() if c.form == "image"}
    vectors = {STATE: source.spec.state, ENVIRONMENT_STATE: source.spec.environment_state, ACTION: source.spec.action}
    numbers = {key: len(entries) for key, entries in vectors.items() if entries}
    name = source.file("data_path", chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    try:
        columns = ["episode_index", "frame_index", "task_index", *numbers, *(c.key for c in pictures.values())]
        table = _rows_of(inside(source.root, name), index, columns)
        if table["frame_index"].to_pylist() != list(range(length)):
            raise Fault(f"has {table.num_rows} frames of episode {index} where {length} are promised, or in another order")
        frames = {key: _vectors(table[key], key, count) for key, count in numbers.items()}
        for camera, c in pictures.items():
            frames[image_key(camera)] = np.stack([_picture(source.root, cell, c) for cell in table[c.key].to_pylist()])
        tasks = [source.tasks.get(t) for t in table["task_index"].to_pylist()]
        if None in tasks:
            raise Fault("has a task_index that meta/tasks.parquet has not")
    except Fault as fault:
        raise Fault(f"{name} {fault}") from None
    for camera, c in source.cameras.items():
        if c.form == "video":
            frames[image_key(camera)] = _film(source, row, c)
    ours = source.ours.get(str(index))
    if ours and ours["length"] == length:
        return Episode(ours["scene"], frames, [Segment(*s) for s in ours["segments"]])
    segments, at = [], 0
    for text, run in groupby(tasks):
        end = at + len(list(run))
        if text:
            segments.append(Segment(at, end, "", text))
        at = end
    return Episode("", frames, segments)


def _rows_of(path: Path, index: int, columns: list[str]) -> pa.Table:
    """The rows of one episode, out of the row groups that hold it."""
    if not path.exists():
        raise Fault("is missing")
    try:
        file = pq.ParquetFile(path)
        if lacks := [c for c in columns if c not in file.schema_arrow.names]:
            raise Fault(f"lacks the column {lacks[0]}")
        groups = [
            g
            for g in range(file.num_row_groups)
            if index in file.read_row_group(g, ["episode_index"])["episode_index"].to_pylist()
        ]
        if not groups:
            raise Fault(f"has no frames of episode {index}")
        table = file.read_row_groups(groups, columns)
        return table.filter(pc.field("episode_index") == index)
    except (pa.ArrowException, OSError) as error:
        raise Fault(f"cannot be read ({str(error).splitlines()[0]})") from None


def _vectors(column: pa.ChunkedArray, key: str, count: int) -> np.ndarray:
    """float32 (T, count)."""
    try:
        rows = column.to_pylist()
        values = np.array([r if isinstance(r, list) else [r] for r in rows], np.float32)
    except (ValueError, TypeError):
        raise Fault(f"has something else than numbers in {key}") from None
    if values.shape != (len(rows), count):
        raise Fault(f"has {key} of {values.shape[1:]} numbers where {count} are promised")
    if not np.isfinite(values).all():
        raise Fault(f"has a number in {key} that is not finite")
    return values


def _picture(root: Path, cell: Any, camera: Camera) -> np.ndarray:
    try:
        data = cell["bytes"] if cell["bytes"] is not None else inside(root, cell["path"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            picture = np.asarray(image.convert("RGB"))
    except (OSError, TypeError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Fault(f"has a picture in {camera.key} that cannot be read ({error})") from None
    return _sized(picture, camera)


def _sized(picture: np.ndarray, camera: Camera) -> np.ndarray:
    if picture.shape[:2] != camera.size:
        raise Fault(f"has a picture of {picture.shape[:2]} in {camera.key} where {camera.size} is promised")
    return picture


def _film(source: Source, row: Mapping[str, Any], camera: Camera) -> np.ndarray:
    """The frames of one episode out of a film of many: uint8 (T, H, W, 3)."""
    key, length, fps = camera.key, row["length"], float(source.info["fps"])
    try:
        where = {f: int(row[f"videos/{key}/{f}"]) for f in ("chunk_index", "file_index")}
        begin = float(row[f"videos/{key}/from_timestamp"])
    except (KeyError, TypeError, ValueError):
        raise Fault(f"meta/episodes does not say where {key} is") from None
    name = source.file("video_path", video_key=key, **where)
    frames: list[np.ndarray] = []
    try:
        path = inside(source.root, name)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(begin * av.time_base))
            for frame in container.decode(stream):
                if frame.time is not None and frame.time > begin + (len(frames) - 0.5) / fps:
                    frames.append(_sized(frame.to_ndarray(format="rgb24"), camera))
                if len(frames) == length:
                    return np.stack(frames)
        raise Fault(f"has {len(frames)} of the {length} frames")
    except Fault as fault:
        raise Fault(f"{name} {fault}") from None
    except (FFmpegError, OSError, IndexError, ValueError) as error:
        raise Fault(f"{name} cannot be decoded ({getattr(error, 'strerror', None) or error})") from None


def first_frames(root: Path, count: int) -> dict[str, np.ndarray]:
    """The first `count` frames of the first episode, camera -> uint8 (count, H, W, 3), of those in video form."""
    source = _open(root, "joints", "", None)
    row = next(_episode_rows(root, {})) | {"length": count}
    return {name: _film(source, row, camera) for name, camera in source.cameras.items() if camera.form == "video"}
