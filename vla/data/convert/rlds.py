"""RLDS episodes in TFRecord files (Open X-Embodiment, Bridge, DROID...) as a dataset of ours, without TensorFlow.

TensorFlow Datasets writes an episode as one tf.train.Example: steps/<name> holds the values of all its steps end to end,
pictures as JPEG or PNG. Which of them are cameras, state, action and instruction is up to the user, for every data set names
them in its own way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vla.data.convert.files import Fault, in_order
from vla.data.convert.report import Summary
from vla.data.convert.tfrecord import Feature, parse_example, records
from vla.data.writer import DatasetWriter, Segment
from vla.spec import ACTION, STATE, Entry, Spec, UserError, image_key

Names = str | Sequence[str]


@dataclass(frozen=True)
class Columns:
    """Names under steps/: camera -> picture, those whose numbers make up state and action, the instruction."""

    cameras: Mapping[str, str]
    state: tuple[str, ...]
    action: tuple[str, ...]
    instruction: str


@dataclass(frozen=True)
class Record:
    """One episode's bytes, or what is wrong with them, and where it lies: "file record 3"."""

    place: str
    data: bytes | Fault


@dataclass(frozen=True)
class Episode:
    frames: dict[str, np.ndarray]
    segments: list[Segment]


def convert(
    path: str | Path,
    out: str | Path,
    control_hz: float,
    cameras: Mapping[str, str],
    state: Names,
    action: Names,
    instruction: str,
    action_kind: str = "relative_pose",
    frame: str = "",
    threads: int = 2,
) -> Summary:
    """Turn the *.tfrecord* files of a folder into one dataset, episode by episode; run again it goes on.

    cameras: ours -> the picture's name under steps/. state, action: a name or several, whose numbers are put end to end;
    [] for none. An episode's scene is its place. Damaged records, and those that repeat one before, are skipped and told.
    """
    folder = Path(path)
    files = sorted(f for f in folder.glob("*.tfrecord*") if f.is_file())
    if not files:
        raise UserError(f"{folder} holds no *.tfrecord* files: give the folder of one version of the data set as path=...")
    columns = Columns(dict(cameras), _several(state), _several(action), instruction)
    skipped: dict[str, str] = {}
    spec = _first_spec(files, columns, skipped, action_kind, control_hz, frame)
    settings = {"source": "rlds", "columns": [dict(cameras), list(columns.state), list(columns.action), instruction]}
    with DatasetWriter(out, spec, {"conversion": settings}) as writer:
        if writer.provenance.get("conversion") != settings:
            raise UserError(f"dataset {out} was begun with {writer.provenance.get('conversion')}: choose another out=...")
        done = set(writer.scenes)
        if done:
            print(f"{len(done)} episodes are in {out} already")
        total = sum(f.stat().st_size for f in files)
        with tqdm(total=total, unit="B", unit_scale=True, smoothing=0.05, desc="converting") as bar:
            read = partial(_episode_or_fault, columns=columns, spec=spec, done=done)
            for record, episode in in_order(read, _records(files, skipped), threads):
                if isinstance(episode, Episode):
                    writer.append_episode(episode.frames, episode.segments, scene=record.place, seed=writer.num_episodes)
                elif episode:
                    skipped[record.place] = episode
                bar.update(len(record.data) if isinstance(record.data, bytes) else 0)
                bar.set_postfix_str(f"{writer.num_episodes} episodes, {writer.num_frames} frames")
        return Summary({"episodes": writer.num_episodes, "frames": writer.num_frames}, skipped)


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _records(files: Sequence[Path], skipped: dict[str, str]) -> Iterator[Record]:
    """All records; one with the same bytes as one before is skipped."""
    seen: dict[int, str] = {}
    for file in files:
        for number, data in enumerate(records(file)):
            place = f"{file.name} record {number}"
            if isinstance(data, bytes) and hash(data) in seen:
                skipped[place] = f"repeats {seen[hash(data)]}"
            else:
                seen[hash(data)] = place
                yield Record(place, data)


def _first_spec(
    files: Sequence[Path], columns: Columns, skipped: dict[str, str], action_kind: str, control_hz: float, frame: str
) -> Spec:
    """Lengths and picture sizes from the first record that is whole."""
    fault = "they hold no records"
    for data in chain.from_iterable(records(file) for file in files):
        try:
            if isinstance(data, Fault):
                raise data
            arrays, _ = _arrays(parse_example(data), columns)
        except Fault as found:
            fault = str(found)
            continue
        entries = {
            key: tuple(Entry(f"{name}_{i}", "1") for i in range(arrays[key].shape[1]))
            for key, name in ((STATE, "state"), (ACTION, "action"))
            if key in arrays
        }
        sizes = {camera: arrays[image_key(camera)].shape[1:3] for camera in columns.cameras}
        return Spec(
            cameras={camera: (int(h), int(w)) for camera, (h, w) in sizes.items()},
            state=entries.get(STATE, ()),
            action=entries.get(ACTION, ()),
            action_kind=action_kind if columns.action else "none",
            control_hz=control_hz,
            frame=frame,
        )
    raise UserError(f"no episode of {files[0].parent} could be used ({fault}): mend the files, or correct the names.")


def _episode_or_fault(record: Record, columns: Columns, spec: Spec, done: set[str]) -> tuple[Record, Episode | str]:
    """The record with its episode, with its fault, or with "" if it is in the dataset already."""
    if record.place in done:
        return record, ""
    try:
        if isinstance(record.data, Fault):
            raise record.data
        arrays, segments = _arrays(parse_example(record.data), columns)
        for camera, size in spec.cameras.items():
            if arrays[image_key(camera)].shape[1:3] != size:
                raise Fault(f"has pictures of another size in {columns.cameras[camera]}")
        for key, entries in ((STATE, spec.state), (ACTION, spec.action)):
            if entries and arrays[key].shape[1] != len(entries):
                raise Fault(f"has {arrays[key].shape[1]} numbers a step in {key} where others have {len(entries)}")
        return record, Episode(arrays, segments)
    except Fault as fault:
        return record, str(fault)


def _arrays(example: Mapping[str, Feature], columns: Columns) -> tuple[dict[str, np.ndarray], list[Segment]]:
    """Frames and segments of an episode; Fault if something is missing or does not fit together."""
    texts = _texts(example, columns.instruction)
    length = len(texts)
    if not length:
        raise Fault("is empty")
    arrays: dict[str, np.ndarray] = {}
    for key, names in ((STATE, columns.state), (ACTION, columns.action)):
        if names:
            arrays[key] = np.concatenate([_numbers(example, name, length) for name in names], axis=1)
    for camera, name in columns.cameras.items():
        cells = _get(example, name)
        if not isinstance(cells, list) or len(cells) != length:
            raise Fault(f"has {len(cells)} pictures in {name} for {length} steps")
        pictures = [_picture(cell, name) for cell in cells]
        if len({p.shape for p in pictures}) > 1:
            raise Fault(f"has pictures of several sizes in {name}")
        arrays[image_key(camera)] = np.stack(pictures)
    segments, at = [], 0
    for text, run in groupby(texts):
        end = at + len(list(run))
        if text:
            segments.append(Segment(at, end, "", text))
        at = end
    return arrays, segments


def _get(example: Mapping[str, Feature], name: str) -> Feature:
    if (key := f"steps/{name}") not in example:
        there = ", ".join(sorted(k.removeprefix("steps/") for k in example if k.startswith("steps/")))
        raise Fault(f"lacks {name} (it has {there})")
    return example[key]


def _texts(example: Mapping[str, Feature], name: str) -> list[str]:
    cells = _get(example, name)
    if not isinstance(cells, list):
        raise Fault(f"has numbers in {name} where text is wanted")
    return [cell.decode(errors="replace").strip() for cell in cells]


def _numbers(example: Mapping[str, Feature], name: str, length: int) -> np.ndarray:
    """float32 (T, D)."""
    values = _get(example, name)
    if isinstance(values, list):
        raise Fault(f"has no numbers in {name}")
    if not len(values) or len(values) % length:
        raise Fault(f"has {len(values)} numbers in {name} for {length} steps")
    if not np.isfinite(values).all():
        raise Fault(f"has a number in {name} that is not finite")
    return values.reshape(length, -1).astype(np.float32)


def _picture(data: bytes, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Fault(f"has a picture in {name} that cannot be read ({type(error).__name__})") from None
